"""Byte codes by name, for the compiled parsers.

Nothing here is compiled. The module has the name of a kernel because `jit` follows kernel modules. So a changed
constant recompiles its users.
"""

from __future__ import annotations

TAB, LINE_FEED, FORM_FEED, CARRIAGE_RETURN, BLANK = b"\t\n\f\r "
BACKSPACE = 8
DELETE = 127

QUOTE, APOSTROPHE, BACKSLASH = b"\"'\\"
SLASH, DOT, COMMA, COLON, SEMICOLON = b"/.,:;"
EXCLAMATION, QUESTION, HASH, AMPERSAND = b"!?#&"
LESS, GREATER, EQUALS = b"<>="
HYPHEN, PLUS = b"-+"
BRACE, BRACE_CLOSES, BRACKET, BRACKET_CLOSES = b"{}[]"

ZERO, NINE = b"09"
UPPER_A, UPPER_F, UPPER_Z = b"AFZ"
LOWER_A, LOWER_F, LOWER_Z = b"afz"
CASE = 32  # the bit that a lower-case letter has and an upper-case letter has not

# UTF-8: a character is one byte below ASCII_END, or a lead byte and one to three more.
ASCII_END = 0x80
LEAD_2, LEAD_3, LEAD_4 = 0xC0, 0xE0, 0xF0  # the bits that give the number of bytes of a character
FIRST_LEAD, LAST_LEAD = 0xC2, 0xF4  # C0 and C1 would be too long, F5 and above beyond Unicode
TAIL, LAST_TAIL = 0x80, 0xBF
TAIL_MASK = 0xC0  # of a later byte, these bits are TAIL
TAIL_BITS = 0x3F  # the other bits belong to the code point

# Code points: the first ones that need two, three and four bytes, and the halves of surrogate pairs.
NEEDS_2, NEEDS_3, NEEDS_4 = 0x80, 0x800, 0x10000
HIGH_SURROGATE, LOW_SURROGATE, SURROGATES_END = 0xD800, 0xDC00, 0xE000
REPLACEMENT = 0xFFFD
