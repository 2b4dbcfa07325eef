"""The languages by their codes, and the other ways in which people write them."""

from __future__ import annotations

import difflib

from stenograf.errors import LanguageUnknownError

WHISPER_LANGUAGES: dict[str, str] = {
    "af": "afrikaans", "am": "amharic", "ar": "arabic", "as": "assamese", "az": "azerbaijani", "ba": "bashkir",
    "be": "belarusian", "bg": "bulgarian", "bn": "bengali", "bo": "tibetan", "br": "breton", "bs": "bosnian",
    "ca": "catalan", "cs": "czech", "cy": "welsh", "da": "danish", "de": "german", "el": "greek", "en": "english",
    "es": "spanish", "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish", "fo": "faroese",
    "fr": "french", "gl": "galician", "gu": "gujarati", "ha": "hausa", "haw": "hawaiian", "he": "hebrew",
    "hi": "hindi", "hr": "croatian", "ht": "haitian creole", "hu": "hungarian", "hy": "armenian",
    "id": "indonesian", "is": "icelandic", "it": "italian", "ja": "japanese", "jw": "javanese", "ka": "georgian",
    "kk": "kazakh", "km": "khmer", "kn": "kannada", "ko": "korean", "la": "latin", "lb": "luxembourgish",
    "ln": "lingala", "lo": "lao", "lt": "lithuanian", "lv": "latvian", "mg": "malagasy", "mi": "maori",
    "mk": "macedonian", "ml": "malayalam", "mn": "mongolian", "mr": "marathi", "ms": "malay", "mt": "maltese",
    "my": "myanmar", "ne": "nepali", "nl": "dutch", "nn": "nynorsk", "no": "norwegian", "oc": "occitan",
    "pa": "punjabi", "pl": "polish", "ps": "pashto", "pt": "portuguese", "ro": "romanian", "ru": "russian",
    "sa": "sanskrit", "sd": "sindhi", "si": "sinhala", "sk": "slovak", "sl": "slovenian", "sn": "shona",
    "so": "somali", "sq": "albanian", "sr": "serbian", "su": "sundanese", "sv": "swedish", "sw": "swahili",
    "ta": "tamil", "te": "telugu", "tg": "tajik", "th": "thai", "tk": "turkmen", "tl": "tagalog", "tr": "turkish",
    "tt": "tatar", "uk": "ukrainian", "ur": "urdu", "uz": "uzbek", "vi": "vietnamese", "yi": "yiddish",
    "yo": "yoruba", "yue": "cantonese", "zh": "chinese",
}  # fmt: skip
"""The 100 languages of multilingual Whisper (OpenAI's tokenizer), code -> English name."""

LANGUAGES: dict[str, str] = WHISPER_LANGUAGES | {"ky": "kyrgyz"}
"""All languages that some model here reads, code -> English name."""

_OTHER_NAMES = {
    "русский": "ru", "английский": "en", "украинский": "uk", "белорусский": "be", "казахский": "kk",
    "немецкий": "de", "французский": "fr", "испанский": "es", "rus": "ru", "eng": "en", "ukr": "uk", "ger": "de",
    "deu": "de", "fra": "fr", "spa": "es", "kaz": "kk", "bel": "be", "burmese": "my", "valencian": "ca",
    "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb", "pushto": "ps", "panjabi": "pa", "moldavian": "ro",
    "moldovan": "ro", "sinhalese": "si", "castilian": "es", "mandarin": "zh", "jv": "jw", "nb": "no",
}  # fmt: skip


def language_name(code: str) -> str:
    """The English name for a code, with a capital; the code itself where it is not known."""
    return LANGUAGES[code].title() if code in LANGUAGES else code


def language_code(name: str | None) -> str | None:
    """The code for a language given as a code, a name or a locale: `ru`, `Russian`, `русский`, `ru-RU` -> `ru`.

    None, the empty string and `auto` mean that the language is to be detected: None. Raises
    `LanguageUnknownError` with the nearest right name.
    """
    wanted = (name or "").strip().lower()
    if wanted in ("", "auto"):
        return None
    base = wanted.replace("_", "-").split("-")[0]
    by_name = {name: code for code, name in LANGUAGES.items()} | _OTHER_NAMES
    for candidate in (wanted, base):
        if candidate in LANGUAGES:
            return candidate
        if candidate in by_name:
            return by_name[candidate]
    near = difflib.get_close_matches(wanted, [*by_name, *LANGUAGES], n=1, cutoff=0.5)
    suggestion = f"Did you mean {near[0]}? " if near else ""
    raise LanguageUnknownError(
        f"There is no language {name!r}.", f"{suggestion}Give a code such as ru or en, or auto to have it detected."
    )
