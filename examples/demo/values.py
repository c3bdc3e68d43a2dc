"""What the demo's users ask for: the values that fill the slots of a request, for training and held out.

No value stands in both halves of a pool; a held-out request therefore asks for things that training never named.
"""

from typing import NamedTuple

Value = str | int | float


class Pool(NamedTuple):
    """The values of one slot, split once and for all."""

    train: tuple[Value, ...]
    held_out: tuple[Value, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _pairs(beginnings: str, ends: str) -> tuple[str, ...]:
    return tuple(f"{beginning} {end}" for beginning in _words(beginnings) for end in _words(ends))


def _by_remainder(numbers: range, divisor: int, held_out: int) -> Pool:
    return Pool(
        tuple(number for number in numbers if number % divisor != held_out),
        tuple(number for number in numbers if number % divisor == held_out),
    )


def _times(hours: range, minutes: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"{hour:02d}:{minute:02d}" for hour in hours for minute in minutes)


def _dates(months: str, days: range) -> tuple[str, ...]:
    return tuple(f"{month} {day}" for month in _words(months) for day in days)


POOLS: dict[str, Pool] = {
    "city": Pool(
        _words(
            "Oslo, Lima, Cairo, Madrid, Boston, Prague, Seoul, Dublin, Nairobi, Vienna, Toronto, Hanoi, Athens,"
            "Denver, Warsaw, Quito, Mumbai, Helsinki, Perth, Santiago, Berlin, Chicago, Manila, Zurich, Kyoto,"
            "New York, Dakar, Cape Town, San Diego, Buenos Aires, Hong Kong, Glasgow, Naples, Porto, Riga, Tunis,"
            "Bogota, Leeds, Osaka"
        ),
        _words("Lisbon, Tokyo, Sydney, Rome, Montreal, Budapest, Seattle, Delhi, Geneva, Mexico City, Tallinn, Accra"),
    ),
    "currency": Pool(
        _words("USD, EUR, GBP, JPY, CAD, SEK, MXN, BRL, INR, KRW, ZAR, CZK, HUF, SGD, ILS, CLP"),
        _words("AUD, CHF, NOK, PLN, NZD, TRY, THB, DKK"),
    ),
    "amount": Pool(
        (*_by_remainder(range(5, 2000, 15), 4, 3).train, 12.5, 49.9, 7.25, 99.5, 150.75, 18.2, 230.4),
        (*_by_remainder(range(5, 2000, 15), 4, 3).held_out, 24.5, 63.9, 310.25),
    ),
    "minutes": _by_remainder(range(2, 100), 5, 3),
    "guests": _by_remainder(range(2, 15), 4, 1),
    "time": Pool(_times(range(5, 23), (0, 10, 15, 30, 40, 55)), _times(range(5, 23), (5, 20, 45, 50))),
    "date": Pool(
        _dates("January, February, April, May, July, August, October, December", range(1, 29)),
        _dates("March, June, September, November", range(1, 29)),
    ),
    "contact": Pool(
        _words(
            "Anna, Ben, Carla, David, Elena, Farid, Grace, Hugo, Ines, Jonas, Kira, Leo, Maya, Nils, Olga, Pablo,"
            "Mom, Quinn, Rosa, Sam, Tara, Uwe, Vera, Will, Yara, Zoe, Mr. Hart, Dr. Cole, Aunt May, my boss,"
            "my sister"
        ),
        _words("Dad, Priya, Marcus, Lucy, Omar, Ingrid, Felix, Mrs. Lane, Uncle Joe, my brother, Noah, Bianca"),
    ),
    "message": Pool(
        (
            *_pairs(
                "see you at, I am waiting at, I left my keys at, let's meet at",
                "the gym, the station, school, the cafe",
            ),
            *_pairs(
                "please bring, don't forget, I bought, I found", "the tickets, your jacket, some cheese, the charger"
            ),
            *_pairs("dinner is, the movie is, my train is, the game is", "at eight, late, cancelled, starting soon"),
            *_words(
                "happy birthday, call me back, I miss you, I am running late, good luck today, thanks for the help"
            ),
        ),
        (
            *_pairs("I parked near, come over to", "the library, the beach"),
            *_pairs("the package is, lunch is", "here, on me"),
            *_words(
                "congratulations on the job, I got the part, we won the match, the baby is asleep, pick up the kids"
            ),
        ),
    ),
    "artist": Pool(
        _words(
            "Queen, Adele, Miles Davis, Radiohead, Shakira, Bob Marley, Daft Punk, Nina Simone, The Beatles,"
            "Coldplay, Johnny Cash, Bjork, Mozart, Kendrick Lamar, Fleetwood Mac, Dolly Parton, Metallica,"
            "Ella Fitzgerald, ABBA, Vivaldi, The Cure, Drake, Joni Mitchell, Pink Floyd, Aretha Franklin, Blur"
        ),
        _words(
            "David Bowie, Beyonce, Nirvana, Chopin, Norah Jones, The Doors, Bill Withers, Lorde, Led Zeppelin,Moby"
        ),
    ),
    "restaurant": Pool(
        _words(
            "Luigi's, The Green Fork, Sakura, Casa Rosa, Blue Harbor, Chez Marie, The Old Mill, Taco Verde,"
            "Golden Wok, Bistro Nord, The Copper Pot, Mamma Mia, Spice Route, Cafe Luna, El Toro, The Red Lion,"
            "Noodle House, Zaytoun"
        ),
        _words(
            "Pierre's, The Silver Spoon, Kimchi Garden, Villa Verde, Ocean Grill, Olive Tree, Fuji,The Hungry Bear"
        ),
    ),
    "title": Pool(
        (
            *_pairs("meeting with, lunch with, call with", "the bank, Peter, the landlord, Sophie, the design team"),
            *_pairs("dentist, doctor, vet, haircut", "appointment, visit"),
            *_words(
                "football practice, parent evening, tax deadline, book club, rent due, oil change, wedding,art class"
            ),
        ),
        (
            *_pairs("breakfast with, interview with", "Hannah, the new intern"),
            *_words("piano recital, board review, eye exam, moving day, school play, garden party, choir rehearsal"),
        ),
    ),
    "phrase": Pool(
        _words(
            "good morning, where is the station, thank you very much, I am hungry, how much is this,"
            "the bill please, nice to meet you, I am lost, see you tomorrow, my name is Paul, I need a doctor,"
            "one ticket please, the water is cold, what time is it, I love this town, can you help me,"
            "we are closed, cheers, no problem, have a safe trip, is this seat free, it is raining,"
            "I would like some soup"
        ),
        _words(
            "good night, where is the museum, excuse me, I am thirsty, two beers please, the room is too small,"
            "do you speak English, I like your hat, happy new year, the bus is full, keep the change"
        ),
    ),
    "language": Pool(
        _words("French, German, Spanish, Japanese, Italian, Swedish, Arabic, Korean, Polish, Hindi, Danish, Czech"),
        _words("Dutch, Portuguese, Greek, Finnish, Turkish, Vietnamese"),
    ),
    "symbol": Pool(
        _words(
            "AAPL, MSFT, NVDA, KO, IBM, NFLX, DIS, PEP, ORCL, BA, INTC, GE, WMT, CVX, UBER, ADBE, PFE, SBUX, XOM,V"
        ),
        _words("TSLA, AMZN, GOOG, NKE, AMD, JPM, MCD, T, SHEL, QCOM"),
    ),
    "grocery": Pool(
        _words(
            "milk, eggs, brown rice, tomatoes, olive oil, bananas, oat flour, batteries, green apples,"
            "toothpaste, tuna, cheddar cheese, paper towels, onions, honey, black beans, yogurt, dish soap,"
            "lemons, peanut butter, salt"
        ),
        _words(
            "butter, carrots, almond milk, light bulbs, red peppers, shampoo, garlic, dog food, maple syrup,spinach"
        ),
    ),
    "chore": Pool(
        (
            *_pairs("clean, fix, paint", "the bathroom, the fence, the garage, the bike"),
            *_words(
                "pay the rent, renew my passport, water the plants, return the books, back up the laptop, file taxes"
            ),
        ),
        (
            *_pairs("wash, sell", "the car, the old desk"),
            *_words("mow the lawn, book the ferry, feed the cat, print the photos, cancel the gym, call the plumber"),
        ),
    ),
    "word": Pool(
        _words(
            "rain, cats, autumn, the moon, friendship, snow, my grandmother, rivers, trains, chocolate, honesty,bees"
        ),
        _words("the sea, dogs, spring, stars, courage, mountains, wind, coffee shops, owls, lanterns"),
    ),
}
"""The values by slot. Choices that a schema's `enum` closes are no pool: both splits must use them."""
