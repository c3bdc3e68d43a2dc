"""Chat templates that write calls in the notations of models whose templates trl does not ship."""

_TURNS = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- set calls = message.tool_calls or [] %}
        {%- if calls and message.content %}{{- '\\n' }}{%- endif %}
        CALLS
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
_EACH = "{%- for call in calls %}EACH{%- endfor %}"
_XML_ARGUMENTS = (
    "{%- for key, value in call.function.arguments.items() %}"
    "OPEN{{- value if value is string else value | tojson }}CLOSE{%- endfor %}"
)
_KEYED = """\
{%- macro write(value) -%}
    {%- if value is string -%}{{- '<escape>' + value + '<escape>' -}}
    {%- elif value is mapping -%}
        {{- '{' -}}{%- for key, item in value.items() -%}
            {{- key + ':' -}}{{- write(item) -}}{%- if not loop.last -%}{{- ',' -}}{%- endif -%}
        {%- endfor -%}{{- '}' -}}
    {%- elif value is sequence -%}
        {{- '[' -}}{%- for item in value -%}
            {{- write(item) -}}{%- if not loop.last -%}{{- ',' -}}{%- endif -%}
        {%- endfor -%}{{- ']' -}}
    {%- else -%}{{- value | tojson -}}{%- endif -%}
{%- endmacro -%}
"""


def _turns(calls: str) -> str:
    return _TURNS.replace("CALLS", calls)


def _each(text: str) -> str:
    return _turns(_EACH.replace("EACH", text))


def _row(opening: str, each: str, closing: str, separator: str = ", ") -> str:
    """Return a template that writes all calls of a turn between an opening and a closing."""
    between = f"{{%- if not loop.last %}}{{{{- '{separator}' }}}}{{%- endif %}}"
    inner = _EACH.replace("EACH", each + between)
    return _turns(f"{{%- if calls %}}{{{{- '{opening}' }}}}{inner}{{{{- '{closing}' }}}}{{%- endif %}}")


def _xml(opening: str, closing: str) -> str:
    return _XML_ARGUMENTS.replace("OPEN", opening).replace("CLOSE", closing)


_ARGUMENTS = "{{- call.function.arguments | tojson }}"
_FUNCTION = """{{- '{"name": "' + call.function.name + '", "arguments": ' }}""" + _ARGUMENTS + "{{- '}' }}"
_PYTHONIC = (
    "{{- call.function.name + '(' }}{%- for key, value in call.function.arguments.items() %}"
    "{{- key + '=' }}{%- if value is string or value is mapping %}{{- value | tojson }}"
    "{%- elif value is iterable %}{{- value | tojson }}"
    "{%- else %}{{- value | string }}{%- endif %}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ')' }}"
)

HAND_MADE: dict[str, str] = {
    # Mistral, old and new
    "json array": _row("[TOOL_CALLS][", _FUNCTION, "]"),
    "name and marked arguments": _each("{{- '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}" + _ARGUMENTS),
    "call ids": _each("{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' }}" + _ARGUMENTS),
    # DeepSeek V3.1
    "name and separator": _row(
        "<｜tool▁calls▁begin｜>",
        "{{- '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' }}"
        + _ARGUMENTS
        + "{{- '<｜tool▁call▁end｜>' }}",
        "<｜tool▁calls▁end｜>",
        separator="",
    ),
    # Kimi K2
    "name in the id": _row(
        "<|tool_calls_section_begin|>",
        "{{- '<|tool_call_begin|>' + call.id + '<|tool_call_argument_begin|>' }}"
        + _ARGUMENTS
        + "{{- '<|tool_call_end|>' }}",
        "<|tool_calls_section_end|>",
        separator="",
    ),
    # Functionary
    "name on a line": _each("{{- '>>>' + call.function.name + '\\n' }}" + _ARGUMENTS),
    "whole calls in a fence": _row("```json\\n[", "{{- call | tojson }}", "]\\n```"),
    "other keys": _each(
        """{{- '<call>{"tool_name": "' + call.function.name + '", "input": ' }}""" + _ARGUMENTS + "{{- '}</call>' }}"
    ),
    "arguments as text": _each(
        """{{- '<call>{"name": "' + call.function.name + '", "arguments": ' }}"""
        "{{- call.function.arguments | tojson | tojson }}{{- '}</call>' }}"
    ),
    "python dictionaries": _each("{{- '<call>' }}{{- call.function | string }}{{- '</call>' }}"),
    "bare json array": _row("[", _FUNCTION, "]"),
    # Llama 3.2 and 4
    "bare pythonic": _row("[", _PYTHONIC, "]"),
    # Gemma
    "keys and marked texts": _KEYED
    + _each(
        "{{- '<start_function_call>call:' + call.function.name }}{{- write(call.function.arguments) }}"
        "{{- '<end_function_call>' }}"
    ),
    # MiniMax
    "invocations": _row(
        "<minimax:tool_call>\\n",
        "{{- '<invoke name=\"' + call.function.name + '\">\\n' }}"
        + _xml("{{- '<parameter name=\"' + key + '\">' }}", "{{- '</parameter>\\n' }}")
        + "{{- '</invoke>\\n' }}",
        "</minimax:tool_call>",
        separator="",
    ),
    # DeepSeek V3.2
    "typed parameters": _row(
        "<｜DSML｜function_calls>\\n",
        "{{- '<｜DSML｜invoke name=\"' + call.function.name + '\">\\n' }}"
        + _xml(
            "{{- '<｜DSML｜parameter name=\"' + key + '\" string=\"' }}"
            "{{- 'true' if value is string else 'false' }}{{- '\">' }}",
            "{{- '</｜DSML｜parameter>\\n' }}",
        )
        + "{{- '</｜DSML｜invoke>\\n' }}",
        "</｜DSML｜function_calls>",
        separator="",
    ),
    # Hermes tags inside each other
    "tags in tags": _each(
        "{{- '<tool>\\n<name>' + call.function.name + '</name>\\n<args>\\n' }}"
        + _xml("{{- '<' + key + '>' }}", "{{- '</' + key + '>\\n' }}")
        + "{{- '</args>\\n</tool>' }}"
    ),
}
"""Templates by what is peculiar to them. The last cannot be learned: its arguments are tags of their own."""
