"""The Penn Treebank tokens of ``ptb.py`` without Java, for texts like those of the E2E dataset, and for no others.

Stanford's tokeniser knows hundreds of special cases. The rules below are those that occur in this domain; they give the
same tokens on all 51,426 references of the dataset but some of the training split that are refused (2 in 1000). What
could be one of the other special cases (a title, a web address, an emoticon, a letter that no reference has, ...) is
refused, so that a score is either the official one or none. The tests compare both on the dataset's references and on
randomly damaged copies of them.
"""

from __future__ import annotations

import re

from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_]"

_TOKEN = re.compile(
    rf"""
      {_ALNUM}[\w.,]*(?:-{_ALNUM}+(?:\.\d+)?)+              # family-friendly, 20-25, food,low-priced
    | {_LETTER}+?(?=n't(?!{_ALNUM})) | n't(?!{_ALNUM})        # is n't
    | '(?:s|re|ll|ve|d|m)(?!{_ALNUM})                        # it 's
    | d'oeuvres? | etc\.
    | {_LETTER}{_ALNUM}*\.(?=[,;:])                          # "center.," keeps its full stop
    | (?:(?<!-)-)?(?:\d*(?:[.,]\d+)+|\d+(?:[.:,]\d+)*(?:/\d+)?)(?!{_ALNUM})    # 20.00, 3/5, and -25 in "20 -25"
    | {_ALNUM}+
    | \S
    """,
    re.VERBOSE,
)
# Abbreviations keep their full stop, some depending on the next word. Which words are abbreviations is not known
# here; short or capitalised words before a full stop are sure only if they are such words of this domain.
_NO_ABBREVIATIONS = """
    Adriatic Alimentum Ambient Area Arms Aromi Avalon Average Away Bakers Bar Beefeater Bells Blue Boat Brazil Café
    Cambridge Centre Chinese Clowns Cocum Cotto Cricketers Cuisine Curry Customers Eagle English Euro Euros Family
    Fitzbillies Food French Friendly Fyne Giraffe Grove Hall Hotel House Indian Inn Italian Japanese Kids King Luton
    Man Mill Moderate One Oriented Palace Phoenix Plough Pounds Price Prices Pub Punter Ranch Range Rate Rating
    Ratings River Riverside Rouge Shop Sicilia Sorrento Spice Star Strada Street Sushi Thames Tree Two Us Vaults
    WIldwood Waterman Welcome Wildwood Winery Wrestlers Zizzi age all are at bad bar be bet but buy by can cup day do
    due eat end far fee few for fun go guy he her him in is it its kid kids lot low man map me mix no not of off old
    on one or our out par per pie pop pub red see set she six so tag tea ten the to too toy try two up us way we wow
    yes yet you
"""
_MAYBE_ABBREVIATION = re.compile(
    rf"(?<![\w'])(?!(?:{'|'.join(_NO_ABBREVIATIONS.split())})\.)(?:[A-Z]{_LETTER}*|{_LETTER}{{1,3}}|approx)\."
)
_UNSURE = re.compile(
    rf"""
      [^A-Za-zé0-9 £$.,;:!?'"/-]
    | \bno\.[ ]*\d | {_ALNUM}[.!?]{_LETTER} | \.(?:com|net|org|edu)\b | \bwww\b
    | \b(?:cannot|gonna|gotta|gimme|lemme|wanna|tis|twas|whaddya|whatcha|dunno)\b
    | {_ALNUM}'(?!(?:s|re|ll|ve|d|m)(?!{_ALNUM})|t(?!{_ALNUM})|oeuvre|[ .,;:?!-]|$) | (?<!n)'t(?!{_ALNUM})
    | (?<!{_ALNUM})'(?!{_LETTER}{{2}}|\d[ ]out)(?<![.]') | \bd'(?!oeuvre)
    | [.]'(?![ ]|$) | (?<=[ ])'(?:em|til|cause)\b
    | /(?!\d) | (?<!\d)/ | /\d+[-/] | \d-\d+- | \d{{3}}[- ]\d{{3}} | -{_ALNUM}+(?:[.,]\d|/) | (?<!\d)[.,]\d | \d\.[,;:]
    | \d[.,]\d+{_LETTER} | [:;]-?[DdPpOo\d] | [!?]{{2}} | --- | \$(?!\d)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_DROPPED = {*PUNCTUATIONS, '"'}


class UnsureError(Exception):
    """A text may hold a special case of Stanford's tokeniser that the rules here do not know."""


def tokenize(text: str) -> str:
    """Returns one line's tokens, lower case and without punctuation, with spaces between.

    Raises:
        UnsureError: if the tokens might not be those of Stanford's tokeniser; the message quotes the place.
    """
    unsure = _UNSURE.search(text) or _MAYBE_ABBREVIATION.search(text)
    if unsure:
        raise UnsureError(f"{text[max(0, unsure.start() - 10) : unsure.end() + 10]!r}")
    tokens = ("#" if token == "£" else token.lower() for token in _TOKEN.findall(text))
    return " ".join(token for token in tokens if token not in _DROPPED)
