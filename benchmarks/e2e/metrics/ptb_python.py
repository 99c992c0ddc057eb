"""The Penn Treebank tokens of ``ptb.py`` without Java, for texts like those of the E2E dataset, and for no others.

Stanford's tokeniser knows hundreds of special cases. The rules below are those that occur in this domain; they give the
same tokens on all 51,426 references of the dataset but a few dozen of the
training split that are refused. What could be one of the other special cases
(a title, a web address, an emoticon, a letter that no reference has, ...) is refused, so that a score is either the
official one or none. The tests compare both on the dataset's references and on randomly damaged copies of them.
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
# Abbreviations keep their full stop, some of them depending on the next word.
_ABBREVIATION = r"""
    Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu|Thurs|Fri
    |Ala|Ariz|Az|Ark|Calif|Colo|Conn|Ct|Dak|Del|Fla|Ga|Ill|Ind|Kans?|Ky|La|Mass|Md|Mich|Minn|Miss|Mo|Mont|Neb|Nev|Okla
    |Ore|Pa|Penn|Tenn|Tex|Va|Vt|Wash|Wisc?|Wyo
    |Inc|Cos?|Corp|Pp?t[ye]s?|Ltd|Plc|Rt|Bancorp|Bhd|Assn|Univ|Intl|Sys|Invt|Elec|Natl|M[ft]g|Dept|Blvd|Ave|Bldg|Bros
    |Mr|Mrs|Ms|Mx|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt|Ste|Pres|Lieut|Hon
    |Brig|Co?mdr|Pfc|Spc|Supts?|Det|Mt|Ft|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|Mme|Msgr|Sfc|St|Rd|Jr|Sr|Esq|Alex|Wm|Jos|Cie|TREAS
    |tel|est|ext|sq|al|seq|vs|cf|Ph|nos|art|fig|pp|eq|approx|ca
"""
_UNSURE = re.compile(
    rf"""
      [^A-Za-zé0-9 £$.,;:!?'"/-]
    | (?<![\w'])(?:{_ABBREVIATION}|{_LETTER})\. | \bno\.[ ]*\d
    | {_ALNUM}[.!?]{_LETTER} | \.(?:com|net|org|edu)\b | \bwww\b
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
    unsure = _UNSURE.search(text)
    if unsure:
        raise UnsureError(f"{text[max(0, unsure.start() - 10) : unsure.end() + 10]!r}")
    tokens = ("#" if token == "£" else token.lower() for token in _TOKEN.findall(text))
    return " ".join(token for token in tokens if token not in _DROPPED)
