"""Chat templates that want the machine's memory, its time or its files."""

_LONG = "{% set a = 'a' * 4000000 %}"
_GROW = "{% set ns = namespace(s=SEED) %}{% for i in range(60) %}{% set ns.s = STEP %}{% endfor %}{{ ns.s }}"
_MANY = "{% for a in range(100000) %}{% for b in range(100000) %}BODY{% endfor %}{% endfor %}"


_CHAIN = "{% set ns = namespace(x=none) %}"
_NAMED = "{% macro " + "m" * 45_000 + "() %}{% endmacro %}{% set m = " + "m" * 45_000 + " %}"
_LISTS = "{% set x = [[1]] * 400000 + [1] %}{% set y = [[1]] * 400000 + [2] %}"


def _growing(seed: str, step: str) -> str:
    return _GROW.replace("SEED", seed).replace("STEP", step)


TOO_LARGE = {
    "repeated text": "{{ 'a' * 10**10 }}",
    "repeated input": "{% set n = 10**10 %}{{ messages[0].content * n }}",
    "repeated list": "{{ [1] * 10**10 }}",
    "repeated bytes": "{{ 'a'.encode() * 10**10 }}",
    "power": "{{ 2 ** (10**8) }}",
    "squares": _growing("3", "ns.s * ns.s"),
    "sum": _growing("'a'", "ns.s + ns.s"),
    "concatenation": _growing("'a'", "ns.s ~ ns.s"),
    "list sum": _growing("[1]", "ns.s + ns.s"),
    "list in list": _growing("[1]", "[ns.s, ns.s]"),
    "tuple in tuple": _growing("(1,)", "(ns.s, ns.s)"),
    "object in object": _growing("{}", "{'a': ns.s, 'b': ns.s}"),
    "dict of dict": _growing("{}", "dict(a=ns.s, b=ns.s)"),
    "batch in batch": _growing("[1]", "ns.s | batch(2, ns.s) | list"),
    "set block": _LONG + "{% set s %}{{ a }}{{ a }}{{ a }}{% endset %}{{ s }}",
    "comparison": "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}"
    "{% set ns.s = [ns.s, ns.s] %}{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}",
    "tojson": "{{ messages | tojson(indent=10**9) }}",
    "indent": "{{ 'a\\nb' | indent(10**9) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "tabs": "{{ ('\\t' * 1000000).expandtabs(100000) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "percent float": "{{ '%.1000000000f' % 1.5 }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 10**9) }}",
    "format map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "replace": _LONG + "{{ a.replace('a', a) }}",
    "replace nothing": _LONG + "{{ a.replace('', a) }}",
    "replace filter": _LONG + "{{ a | replace('a', a) }}",
    "join": _LONG + "{{ a.join(a) }}",
    "join filter": _LONG + "{{ range(100000) | join(a) }}",
    "join of map": _LONG + "{{ a.join(range(100000) | map('string')) }}",
    "sum of lists": "{{ ([range(100000) | list] * 1000) | sum(start=[]) | length }}",
    "wordwrap": _LONG + "{{ a | wordwrap(1, wrapstring=a) }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "round": "{{ 1.5 | round(10**9) }}",
    "number to bytes": "{{ (5).to_bytes(10**10, 'big') }}",
    "translate": _LONG + "{{ a.translate({97: a}) }}",
    "date": "{{ strftime_now('%c' * 1000000) }}",
    "hoarded texts": _LONG + "{% set ns = namespace(l=[]) %}"
    "{% for i in range(100000) %}{% set ns.l = [ns.l, a ~ i] %}{% endfor %}",
    "hoarded slices": _LONG + "{% set ns = namespace(l=[]) %}"
    "{% for i in range(100000) %}{% set ns.l = ns.l + [a[i:]] %}{% endfor %}",
    "hoarded output": "{% set a = ['a' * 4000000] %}{% for i in range(100000) %}{{ a }}{% endfor %}",
    "hoarded escapes": "{% autoescape true %}{% set a = '<' * 4000000 %}"
    "{% for i in range(100000) %}{{ a }}{% endfor %}{% endautoescape %}",
    "chain of namespaces": _CHAIN + "{% set d = dict.fromkeys(range(100000)) %}"
    "{% for i in range(100000) %}{% set ns.x = namespace(d, p=ns.x) %}{% endfor %}",
    "chain of copies": _CHAIN + "{% set d = dict.fromkeys(range(100000)) %}"
    "{% for i in range(100000) %}{% set ns.x = namespace(p=ns.x, v=d.copy()) %}{% endfor %}",
    "join of attributes": _LONG + "{{ ([namespace(s=a)] * 500000) | join(attribute='s') }}",
    "join of a cycler": _LONG + "{{ ([cycler(a)] * 500000) | join('', 'current') }}",
    "sort by an attribute": _LONG + "{{ ([namespace(s=a)] * 500000) | sort(attribute='s') | length }}",
    "name of a macro": _NAMED + "{{ ([m] * 500000) | join }}",
    "name of a macro in a format": _NAMED + "{{ ('{0}' * 30000).format(m) }}",
    "view": _LONG + "{{ ('{0}' * 100000).format(dict(a=a).values()) }}",
    "large number": "{{ ('f' * 8000000) | int(0, 16) // 3 > 1 }}",
    "number of bytes": "{{ (5).from_bytes(('a' * 8000000).encode()) // 3 > 1 }}",
    "numbers in a list": "{{ [2 ** 99990] * 700000 == [2 ** 99990] * 700000 }}",
    "many widths": "{{ ('{0:99999}' * 100000).format(1) }}",
    "many widths, percent": "{{ ('%(a)99999d' * 100000) % {'a': 1} }}",
    "names of characters": "{{ ('\\ufbf9' * 8000000).encode('ascii', 'namereplace') }}",
    "long source": "a" * 300_000,
}
"""By what they let grow; each is stopped before it has grown."""

TOO_LONG = {
    "three loops": _MANY.replace("BODY", "{% for c in range(100000) %}{% endfor %}"),
    "output": _MANY.replace("BODY", "{{ a }}{{ b }}"),
    "cycler": "{% set c = cycler(1, 2) %}" + _MANY.replace("BODY", "{{ c.next() }}"),
    "macros": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}a{% endmacro %}{{ m(60) }}",
    "select": "{% set l = range(100000) | list %}{{ range(100000) | select('in', l) | list | length }}",
    "sort": "{% for i in range(100000) %}{% set x = range(100000) | sort(reverse=true) %}{% endfor %}",
    "one statement": _LISTS + "{% set z = [" + "x == y, " * 8000 + "] %}",
    "one output": _LISTS + "{{ x == y }}" * 6000,
    "condition of a loop": _LISTS + "{% for i in range(100000) if x == y %}{% endfor %}",
    "strip": "{{ ('a' * 4000000).strip('b' * 4000000 ~ 'a') }}",
    "strip short": "{% set w = 'b' * 7000000 ~ 'a' %}{% set t = 'a' * 256 %}"
    + _MANY.replace("BODY", "{{ t.strip(w) }}"),
    "trim": "{{ ('a' * 4000000) | trim('b' * 4000000 ~ 'a') }}",
    "search from behind": "{{ ('a' * 8000000).rfind('b' ~ 'a' * 4000000) }}",
    "split from behind": "{{ ('a' * 8000000).rsplit('b' ~ 'a' * 4000000) }}",
    "wordwrap": _LONG + "{{ a | wordwrap(1) }}",
    "comments": "{{ ('<!---->' * 1000000) | striptags }}",
    "comments in markup": "{{ (('<!---->' * 1000000) | safe).striptags() }}",
    "punycode": "{{ ('\\u4e00\\u3042' * 200000).encode('punycode') }}",
    "title": "{{ ('a ' * 3000000) | title }}",
    "pprint": "{% set ns = namespace(l=['a b c']) %}"
    "{% for i in range(18) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | pprint }}",
    "attributes": "{{ ([messages[0]] * 30000) | sort(attribute='" + "x," * 40000 + "x') }}",
    "search": _LONG + "{% set t = a %}" + _MANY.replace("BODY", "{% if 'b' in t %}{% endif %}"),
}
"""By what takes them so long; each is stopped after so many steps, or seconds."""

REFUSED = {
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for a in [[1]] recursive %}{{ loop([[1], [1]]) }}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "extends": "{% extends '/etc/passwd' %}",
    "class": "{{ 'x'.__class__.__mro__[1].__subclasses__() }}",
    "attr": "{{ ('x' | attr('__class__')).__mro__ }}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "format": "{{ '{0.__class__.__mro__}'.format('x') }}",
    "init": "{{ cycler.__init__.__globals__.os.system('true') }}",
    "append": "{{ messages.append(1) }}",
    "range": "{{ range(10**9) }}",
    "division": "{{ 1 / 0 }}",
    "words": "{{ raise_exception('a' * 1000000) }}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "branches": "{% if messages %}" * 2000 + "{% endif %}" * 2000,
    "lipsum": "{{ lipsum(100000000) }}",
}
"""By what the sandbox, or Python itself, does not let them do."""
