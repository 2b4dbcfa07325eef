"""A small parallel grammar: every sentence exists in Russian and in English.

About 150 words a language. Numbers are written as words, because the GigaAM form knows only the letters
а-я. No word is spelled with ё, so that both forms agree on the spelling. Twelve percent of the sentences
are held out: a hash of the Russian text decides, so the split never depends on a seed or on the order of
generation.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from dataclasses import dataclass

HELD_OUT_PERCENT = 12

# Each slot: name -> list of (Russian, English).
SLOTS: dict[str, list[tuple[str, str]]] = {
    "day": [("сегодня", "today"), ("вчера", "yesterday")],
    "when": [
        ("завтра утром", "tomorrow morning"),
        ("сегодня вечером", "this evening"),
        ("завтра вечером", "tomorrow evening"),
        ("в понедельник", "on Monday"),
        ("в среду", "on Wednesday"),
        ("в пятницу", "on Friday"),
        ("через час", "in one hour"),
        ("через десять минут", "in ten minutes"),
    ],
    "sum": [
        ("двести рублей", "two hundred rubles"),
        ("триста рублей", "three hundred rubles"),
        ("пятьсот рублей", "five hundred rubles"),
        ("семьсот рублей", "seven hundred rubles"),
        ("тысячу рублей", "one thousand rubles"),
        ("две тысячи", "two thousand"),
        ("две с половиной тысячи", "two and a half thousand"),
        ("три тысячи", "three thousand"),
        ("три с половиной тысячи", "three and a half thousand"),
        ("пять тысяч", "five thousand"),
        ("шесть тысяч", "six thousand"),
        ("десять тысяч", "ten thousand"),
        ("двадцать тысяч", "twenty thousand"),
    ],
    "thing": [
        ("продукты", "groceries"),
        ("хлеб", "bread"),
        ("молоко", "milk"),
        ("кофе", "coffee"),
        ("чай", "tea"),
        ("сыр", "cheese"),
        ("яблоки", "apples"),
        ("книгу", "a book"),
        ("цветы", "flowers"),
        ("билеты", "tickets"),
        ("лекарство", "medicine"),
        ("подарок", "a gift"),
    ],
    "purpose": [
        ("еду", "food"),
        ("такси", "a taxi"),
        ("бензин", "fuel"),
        ("одежду", "clothes"),
        ("ремонт", "repairs"),
        ("кино", "the cinema"),
    ],
    "bill": [
        ("интернет", "the internet"),
        ("квартиру", "the rent"),
        ("телефон", "the phone"),
        ("свет", "the light"),
    ],
    "device": [
        ("свет", "the light"),
        ("музыку", "the music"),
        ("телевизор", "the television"),
        ("чайник", "the kettle"),
        ("лампу", "the lamp"),
        ("радио", "the radio"),
        ("компьютер", "the computer"),
    ],
    "place": [
        ("на кухне", "in the kitchen"),
        ("в спальне", "in the bedroom"),
        ("в комнате", "in the room"),
        ("в ванной", "in the bathroom"),
        ("в коридоре", "in the hall"),
        ("в офисе", "in the office"),
    ],
    "where": [
        ("дома", "at home"),
        ("на работе", "at work"),
        ("в магазине", "at the store"),
        ("на вокзале", "at the station"),
        ("в школе", "at school"),
        ("у врача", "at the doctor"),
    ],
    "action": [
        ("позвонить маме", "call mom"),
        ("позвонить брату", "call my brother"),
        ("купить молоко", "buy milk"),
        ("купить хлеб", "buy bread"),
        ("забрать посылку", "pick up the parcel"),
        ("полить цветы", "water the flowers"),
        ("отправить письмо", "send the letter"),
        ("проверить почту", "check the mail"),
        ("закрыть окно", "close the window"),
        ("открыть дверь", "open the door"),
    ],
    "span": [
        ("пять минут", "five minutes"),
        ("десять минут", "ten minutes"),
        ("двадцать минут", "twenty minutes"),
        ("тридцать минут", "thirty minutes"),
        ("сорок минут", "forty minutes"),
    ],
    "hour": [
        ("шесть утра", "six in the morning"),
        ("семь утра", "seven in the morning"),
        ("восемь утра", "eight in the morning"),
        ("девять утра", "nine in the morning"),
        ("шесть вечера", "six in the evening"),
        ("семь вечера", "seven in the evening"),
        ("восемь вечера", "eight in the evening"),
    ],
    "weekday": [("в понедельник", "on Monday"), ("в среду", "on Wednesday"), ("в пятницу", "on Friday")],
    "clock": [
        ("шесть часов", "six o'clock"),
        ("семь часов", "seven o'clock"),
        ("восемь часов", "eight o'clock"),
        ("девять часов", "nine o'clock"),
        ("десять часов", "ten o'clock"),
    ],
    "event": [
        ("встреча", "the meeting"),
        ("урок", "the lesson"),
        ("поезд", "the train"),
        ("концерт", "the concert"),
        ("обед", "the lunch"),
    ],
    "sky": [("холодно", "cold"), ("тепло", "warm"), ("жарко", "hot"), ("ветер", "windy"), ("дождь", "rainy")],
    "who": [("мама", "mom"), ("брат", "my brother"), ("сестра", "my sister"), ("врач", "the doctor")],
    "item": [
        ("ключи", "the keys"),
        ("документы", "the documents"),
        ("деньги", "the money"),
        ("сумка", "the bag"),
    ],
    "n": [
        ("ноль", "zero"),
        ("один", "one"),
        ("два", "two"),
        ("три", "three"),
        ("четыре", "four"),
        ("пять", "five"),
        ("шесть", "six"),
        ("семь", "seven"),
        ("восемь", "eight"),
        ("девять", "nine"),
    ],
}

# (weight, Russian, English); a slot used twice takes two different fillings: {n1}, {n2} are both slot "n".
TEMPLATES: list[tuple[int, str, str]] = [
    (9, "Купил {thing} на {sum}.", "Bought {thing} for {sum}."),
    (6, "{day} купил {thing} на {sum}.", "{day} I bought {thing} for {sum}."),
    (6, "Потратил {sum} на {purpose}.", "Spent {sum} on {purpose}."),
    (4, "{day} потратил {sum} на {purpose}.", "{day} I spent {sum} on {purpose}."),
    (4, "Заплатил за {bill} {sum}.", "Paid {sum} for {bill}."),
    (6, "Включи {device} {place}.", "Turn on {device} {place}."),
    (6, "Выключи {device} {place}.", "Turn off {device} {place}."),
    (2, "Включи {device}, пожалуйста.", "Turn on {device}, please."),
    (2, "Выключи {device}, пожалуйста.", "Turn off {device}, please."),
    (8, "Напомни {when} {action}.", "Remind me {when} to {action}."),
    (4, "Не забудь {action}.", "Do not forget to {action}."),
    (3, "Мне нужно {when} {action}.", "I need to {action} {when}."),
    (2, "Поставь таймер на {span}.", "Set a timer for {span}."),
    (3, "Поставь будильник на {hour}.", "Set an alarm for {hour}."),
    (5, "{event} {weekday} в {clock}.", "{event} is {weekday} at {clock}."),
    (5, "Код {n1} {n2} {n3} {n4}.", "The code is {n1} {n2} {n3} {n4}."),
    (5, "Номер дома {n1} {n2} {n3}.", "The house number is {n1} {n2} {n3}."),
    (3, "Я буду {where} через {span}.", "I will be {where} in {span}."),
    (3, "Я уже {where}.", "I am already {where}."),
    (3, "{who} уже {where}.", "{who} is already {where}."),
    (2, "{item} лежат {place}.", "{item} are {place}."),
    (3, "Давай встретимся {when} {where}.", "Let us meet {when} {where}."),
    (2, "Перезвони мне {when}.", "Call me back {when}."),
    (2, "{place} очень {sky}.", "It is very {sky} {place}."),
    (1, "Завтра будет {sky}.", "Tomorrow will be {sky}."),
    (2, "Сколько стоит {item}?", "How much is {item}?"),
    (2, "Привет, как дела {where}?", "Hello, how are things {where}?"),
    (2, "Спасибо, {where} все хорошо.", "Thank you, all is well {where}."),
]

# Left out: what nobody would say in one of the languages, and what Russian agreement forbids.
_RULES: dict[str, set[str]] = {
    "{item} лежат {place}.": {"сумка"},
    "Сколько стоит {item}?": {"ключи", "документы", "деньги"},
    "{place} очень {sky}.": {"ветер", "дождь"},
}


@dataclass(frozen=True)
class Sentence:
    """One meaning in both languages."""

    ru: str
    en: str

    def text(self, language: str) -> str:
        return self.ru if language == "ru" else self.en

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.ru.encode()).digest()
        return digest[0] * 256 + digest[1] < 65536 * HELD_OUT_PERCENT // 100


def _capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def _fill(ru: str, en: str, rng: random.Random) -> Sentence:
    names = re.findall(r"{(\w+)}", ru)
    chosen_ru, chosen_en = {}, {}
    for name in names:
        options = SLOTS[name.rstrip("0123456789")]
        options = [o for o in options if o[0] not in _RULES.get(ru, ())]
        chosen_ru[name], chosen_en[name] = rng.choice(options)
    return Sentence(_capitalise(ru.format(**chosen_ru)), _capitalise(en.format(**chosen_en)))


def sentences(count: int, seed: int, held_out: bool) -> list[Sentence]:
    """Draw `count` sentences (they may repeat) from one side of the split."""
    rng = random.Random(seed)
    weights = list(itertools.accumulate(weight for weight, _, _ in TEMPLATES))
    drawn: list[Sentence] = []
    while len(drawn) < count:
        _, ru, en = rng.choices(TEMPLATES, cum_weights=weights)[0]
        sentence = _fill(ru, en, rng)
        if sentence.held_out == held_out:
            drawn.append(sentence)
    return drawn


def words(text: str) -> list[str]:
    """The words in lower case, without punctuation: what the GigaAM form writes, and what WER compares."""
    return re.sub(r"[^\w ]", "", text.lower().replace("ё", "е")).split()


def vocabulary(language: str) -> set[str]:
    """Every word that the grammar can say."""
    found: set[str] = set()
    for _, ru, en in TEMPLATES:
        found.update(words(re.sub(r"{\w+}", "", ru if language == "ru" else en)))
    for options in SLOTS.values():
        for ru, en in options:
            found.update(words(ru if language == "ru" else en))
    return found


if __name__ == "__main__":
    for code in ("ru", "en"):
        print(code, len(vocabulary(code)), "words")
    pool = set(sentences(200_000, 1, held_out=False))
    print(len(pool), "distinct training sentences seen in 200,000 draws")
    for example in sentences(10, 2, held_out=True):
        print(f"{example.ru}  |  {example.en}")
