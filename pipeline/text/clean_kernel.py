"""Finds the rows of a batch that need cleaning, in one pass over the bytes. Other rows are clean and are kept.

The kernel never drops a row. It leaves a row without a flag only if `clean_rules` would return it unchanged with code
0. It flags every row of which it is not sure. A test checks this on many texts. So the exact rules are in `clean_rules`
alone. Some texts only need blanks folded or accents composed (NFC). They get the code TIDY: `clean_rules.tidy` handles
many of them at once, and the kernel then looks at them again.
"""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.engine.bits_kernel import load32
from pipeline.engine.hashing import string_buffers
from pipeline.engine.hashing_kernel import frozen
from pipeline.engine.jit import njit
from pipeline.text import clean_rules, phrases

Flags = npt.NDArray[np.bool_]
Work = npt.NDArray[np.uint8]

U = np.uint64

FINE, TIDY, WORK = (np.uint8(code) for code in range(3))  # the results of `text_work`

# What a character of the Basic Multilingual Plane means to `text_work`, as bits.
_PLAIN = np.uint8(1)  # needs no cleaning and joins with no neighbour
_LETTER = np.uint8(2)
_UNCASED = np.uint8(4)  # a letter of a script without case: enough for a text
_DIGIT = np.uint8(8)
_LEAD = np.uint8(16)  # shown for the first byte of a UTF-8 sequence, when that is read as Windows-1252
_CONTINUATION = np.uint8(32)  # shown for a later byte
_COMPOSES = np.uint8(64)  # NFC may change it or join it with a neighbour
_FOREIGN = np.uint8(128)  # shown for no byte: a text with such a character is no mojibake

# What a byte means to `text_work`. A letter is bit 0, a digit bit 1, so that both are counted without a branch.
_BLANK, _ADDRESS, _BEYOND_ASCII, _DIRTY, _AMPERSAND, _MARK = (np.uint8(bit) for bit in (4, 8, 16, 32, 64, 128))

# What a byte may be in a canonical URL, as bits.
_HOST, _HEX, _PATH, _SIMPLE_IN_PATH, _SIMPLE_IN_QUERY = (np.uint8(bit) for bit in (1, 2, 4, 8, 16))

# Bytes by name.
_BLANK_BYTE, _DOT, _SLASH, _COLON, _QUESTION, _PERCENT, _AMPERSAND_BYTE, _HASH_BYTE = b" ./:?%&#"
_LESS, _GREATER, _OPEN_BRACKET, _OPEN_BRACE, _CLOSE_BRACE, _BACKSLASH, _DOLLAR, _AT = b"<>[{}\\$@"
_LEFT_BRACKET, _ZERO, _TWO, _NINE = b"(029"
_LOWER_A, _LOWER_B, _LOWER_E, _LOWER_G, _LOWER_H, _LOWER_O, _LOWER_P = b"abeghop"
_LOWER_S, _LOWER_T, _LOWER_V, _LOWER_Z = b"stvz"
_CASE = np.uint8(0x20)  # the bit that a lower-case letter has and an upper-case letter has not
_LETTERS = 26

# UTF-8: the first lead bytes of two, three and four bytes, the bits that mark a later byte, the bits of the code point.
_ASCII_END, _LEAD_2, _LEAD_3, _LEAD_4, _TAIL = 0x80, 0xC2, 0xE0, 0xF0, 0x80
_TAIL_MASK, _TAIL_BITS, _BITS_OF_LEAD_2, _BITS_OF_LEAD_3 = (np.uint32(bits) for bits in (0xC0, 0x3F, 0x1F, 0x0F))
_NEEDS_3 = 0x800  # the first code point that needs three bytes

_LONGEST_LABEL, _LONGEST_HOST = U(63), U(253)  # bytes of a host between two dots, and in all
_SHORTEST_URL = 9

_MIX_1, _MIX_2 = np.uint32(phrases.MIX_1), np.uint32(phrases.MIX_2)
_LONGEST_ASCII, _LONGEST_BEYOND_ASCII = U(phrases.LONGEST_OF_PATTERN), U(4 * phrases.LONGEST_OF_PATTERN)  # bytes
_HALF, _LOW_BITS = np.uint32(16), np.uint32(0xFFFF)  # the two halves of a hash
_GRAM_BITS = 18
_GRAM_SHIFT, _MIX, _LOW_32, _FOUR_CASES = U(32 - _GRAM_BITS), U(phrases.MIX_1), U(phrases.MASK), U(0x20202020)
_IN_WORD_AT, _PLACE = U(6), U(63)  # of a bit: its word of 64, and the place in it
_THREE_LETTERS = U((1 << 48) - 1)
# No whole phrase and no camera's name has more letters.
_MOST_LETTERS = max(30, *(sum(map(str.isalpha, phrase)) for phrase in phrases.table().whole))
_WHOLE, _CAMERA, _WORD, _PAIR, _THREE, _LOW_HALF, _OF_PATTERN = (np.uint8(1 << bit) for bit in range(7))
_EVENTS = {phrases.WORD: _WORD, phrases.PAIR: _PAIR, phrases.THREE: _THREE, phrases.OF_PATTERN: _OF_PATTERN}
_MOST_DIGITS = 9  # a phone number has more

# The letters before the first digit in a camera's name for a picture (`clean_rules` has the exact pattern).
_CAMERA_LETTERS = (
    "img image imgp mg dsc dscn dscf dsci pict pic picture photo scan screenshot capture wp vid mvi gopr dji cimg kimg"
    " pxl fbimg whatsappimage p sam untitled"
).split()


def _character_table() -> npt.NDArray[np.uint8]:
    """The bits of all 65,536 characters of the Basic Multilingual Plane."""
    joining = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # Hangul vowels and finals
    for code in range(0x10000):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and parts[0][0] != "<":
            joining.add(chr(int(parts[1], 16)))  # composes with what stands before it
    table = np.zeros(0x10000, np.uint8)
    for code in range(0x10000):
        char = chr(code)
        if 0xD800 <= code < 0xE000 or char in "\u200c\u200d\ufffd":
            continue
        if clean_rules.DROPPED.match(char) or (char.isspace() and char != " "):
            continue
        unsettled = char in joining or unicodedata.combining(char) or not unicodedata.is_normalized("NFC", char)
        table[code] = _COMPOSES if unsettled else _PLAIN
        if char.isalpha():
            table[code] |= _LETTER | (_UNCASED if char.lower() == char.upper() else np.uint8(0))
        elif char.isdigit():
            table[code] |= _DIGIT
        if char not in clean_rules.BYTE_OF:
            table[code] |= _FOREIGN
        if 0xC2 <= code <= 0xF4:
            table[code] |= _LEAD
        if char in clean_rules.CONTINUATIONS:
            table[code] |= _CONTINUATION
    return table


def _byte_table(characters: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The bits of all 256 bytes in a text. A word with a byte of _ADDRESS may be an address or a file name."""
    table = np.full(256, _BEYOND_ASCII)
    for byte in range(128):
        char = chr(byte)
        table[byte] = char.isalpha() | char.isdigit() << 1
        table[byte] |= _BLANK if char == " " else np.uint8(0)
        table[byte] |= _ADDRESS if char in ".:_-0123456789" else np.uint8(0)
        table[byte] |= _AMPERSAND if char == "&" else np.uint8(0)
        table[byte] |= np.uint8(0) if characters[byte] & _PLAIN else _DIRTY
        table[byte] |= _MARK if char in "<>{}[\\@" else np.uint8(0)
    return table


def _url_table() -> npt.NDArray[np.uint8]:
    """The bits of all 256 bytes in a URL."""
    table = np.zeros(256, np.uint8)
    for byte in range(0x21, 0x7F):
        char = bytes([byte])
        table[byte] |= _HOST if re.fullmatch(rb"[a-z0-9._-]", char) else np.uint8(0)
        table[byte] |= _HEX if re.fullmatch(rb"[0-9A-Fa-f]", char) else np.uint8(0)
        table[byte] |= _PATH if not re.fullmatch(rb"[\"<>^`{}\\#?]", char) else np.uint8(0)
        table[byte] |= _SIMPLE_IN_PATH if table[byte] & _PATH and char not in b".%" else np.uint8(0)
        table[byte] |= _SIMPLE_IN_QUERY if not re.fullmatch(rb"[\"'<>#%]", char) else np.uint8(0)
    return table


def _name_table() -> npt.NDArray[np.uint8]:
    """By hash: bits for the letters of a whole phrase and of a camera's name, and for the events of phrases."""
    table = np.zeros(1 << 16, np.uint8)
    listed = [(phrases.whole_hash(name), _WHOLE) for name in phrases.table().whole]
    listed += [(phrases.whole_hash(name), _CAMERA) for name in _CAMERA_LETTERS]
    listed += [(value, _EVENTS[kind]) for kind, value in phrases.triggers()]
    for value, bit in listed:
        table[value >> 16] |= bit
        table[value & 0xFFFF] |= _LOW_HALF
    return table


def _gram_table() -> npt.NDArray[np.uint64]:
    """A bit at the hash of each rare gram of the phrases: 32 KiB, so that they stay in the inner cache."""
    table = np.zeros(1 << _GRAM_BITS >> 6, np.uint64)
    for gram in phrases.rare_grams():
        place = (int.from_bytes(gram, "little") * phrases.MIX_1 & phrases.MASK) >> int(_GRAM_SHIFT)
        table[place >> 6] |= U(1) << U(place & 63)
    return table


def _fold_table() -> npt.NDArray[np.uint16]:
    """`phrases.fold` of all characters of the Basic Multilingual Plane."""
    surrogates = range(0xD800, 0xE000)
    return np.array([code if code in surrogates else phrases.fold(chr(code)) for code in range(0x10000)], np.uint16)


_CHARACTERS, _URL_BYTES, _NAMES, _FOLDED = _character_table(), _url_table(), _name_table(), _fold_table()
_TEXT_BYTES = _byte_table(_CHARACTERS)
_GRAMS = _gram_table()
_ASCII_WORDS = np.array([ord(chr(byte).lower()) * chr(byte).isalnum() for byte in range(128)] + [0] * 128, np.uint8)


@njit
def _character(data, place, end):
    """(code point, bytes) of the non-ASCII sequence at `place`.

    (0, 1) stands for a bad sequence and for one of four bytes. Both need work.
    """
    first = np.uint32(data[place])
    if place + U(1) < end:
        second = np.uint32(data[place + U(1)])
        if second & _TAIL_MASK == _TAIL:
            if _LEAD_2 <= first < _LEAD_3:
                return np.uint32((first & _BITS_OF_LEAD_2) << np.uint32(6) | (second & _TAIL_BITS)), 2
            if _LEAD_3 <= first < _LEAD_4 and place + U(2) < end:
                third = np.uint32(data[place + U(2)])
                tail = (second & _TAIL_BITS) << np.uint32(6) | (third & _TAIL_BITS)
                code = (first & _BITS_OF_LEAD_3) << np.uint32(12) | tail
                if third & _TAIL_MASK == _TAIL and code >= _NEEDS_3:
                    return np.uint32(code), 3
    return np.uint32(0), 1


@njit
def _walk(data, start, end, characters):
    """(FINE, TIDY or WORK, letters, weight of the letters, digits) of the characters beyond ASCII in a text."""
    letters = weight = digits = 0
    before = seen = np.uint8(0)
    is_suspicious = False
    place = start
    while place < end:
        if data[place] < _ASCII_END:
            before = np.uint8(0)
            place += U(1)
            continue
        code, width = _character(data, place, end)
        bits = characters[code]
        if not bits & (_PLAIN | _COMPOSES):
            return WORK, 0, 0, 0
        is_suspicious |= bits & _CONTINUATION != 0 and before & _LEAD != 0
        seen |= bits
        if bits & _LETTER:
            letters += 1
            weight += 2 if bits & _UNCASED else 1
        elif bits & _DIGIT:
            digits += 1
        before = bits
        place += U(width)
    if is_suspicious and not seen & _FOREIGN:
        return WORK, 0, 0, 0
    return TIDY if seen & _COMPOSES else FINE, letters, weight, digits


@njit
def _may_hold_entity(data, start, end):
    """True for an ampersand with a letter or a "#" after it."""
    for place in range(U(start), U(end) - U(1)):
        if data[place] == _AMPERSAND_BYTE:
            after = data[place + U(1)]
            if after == _HASH_BYTE or np.uint8((after | _CASE) - np.uint8(_LOWER_A)) < _LETTERS:
                return True
    return False


@njit
def _may_hold_code(data, start, end):
    """True if a byte of _MARK has a neighbour as in markup, in the code that `clean_rules` drops, or in an address."""
    for place in range(U(start), U(end)):
        byte = data[place]
        before = data[place - U(1)] if place > U(start) else np.uint8(0)
        after = data[place + U(1)] if place + U(1) < U(end) else np.uint8(0)
        is_letter = np.uint8((after | _CASE) - np.uint8(_LOWER_A)) < _LETTERS
        if byte == _OPEN_BRACKET:
            third = data[place + U(2)] if place + U(2) < U(end) else np.uint8(0)
            found = after | _CASE == _LOWER_O and third | _CASE == _LOWER_B  # [object Object]
        elif byte == _LESS:
            found = is_letter or after == _SLASH or after == _PERCENT or after == _QUESTION
        elif byte == _GREATER:
            found = before == _PERCENT
        elif byte == _OPEN_BRACE:
            found = before == _DOLLAR or after == _BACKSLASH or after == _OPEN_BRACE or after == _PERCENT
        elif byte == _CLOSE_BRACE:
            found = after == _CLOSE_BRACE or before == _PERCENT
        elif byte == _BACKSLASH:
            found = is_letter
        else:
            found = byte == _AT and before != _BLANK_BYTE and (is_letter or _ZERO <= after <= _NINE)
        if found:
            return True
    return False


@njit
def _spread(first, second):
    """`phrases.spread`."""
    mixed = np.uint32(np.uint32(np.uint32(first * _MIX_1) ^ second) * _MIX_2)  # numba's products of uint32 are uint64
    return np.uint32((mixed ^ (mixed >> np.uint32(15))) * _MIX_1)


@njit
def _may_hold_number(data, start, end):
    """True for more than _MOST_DIGITS digits with nothing but blanks and the marks of phone numbers between them."""
    run = 0
    for place in range(start, end):
        byte = data[place]
        if _ZERO <= byte <= _NINE:
            run += 1
            if run > _MOST_DIGITS:
                return True
        elif byte != _BLANK_BYTE and not _LEFT_BRACKET <= byte <= _SLASH:  # ()*+,-./
            run = 0
    return False


@njit
def _is_listed(names, value, bit):
    """True if both halves of a hash are listed."""
    return names[value >> _HALF] & bit != 0 and names[value & _LOW_BITS] & _LOW_HALF != 0


@njit
def _may_be_name(data, start, end, tables):
    """True if all letters are those of a whole phrase, or those before the first digit are those of a camera's name."""
    characters, names, folded = tables
    whole, at_digit, digits = np.uint32(0), np.uint32(0), 0
    place = start
    while place < end:
        code, width = np.uint32(data[place]), 1
        if code >= _ASCII_END:
            code, width = _character(data, place, end)
        if characters[code] & _LETTER:
            whole = np.uint32(np.uint32(whole * _MIX_1) + folded[code])
        elif characters[code] & _DIGIT:
            at_digit = whole if digits == 0 else at_digit
            digits += 1
        place += U(width)
    if _is_listed(names, _spread(np.uint32(0), whole), _WHOLE):
        return True
    return digits > 1 and _is_listed(names, _spread(np.uint32(0), at_digit), _CAMERA)


@njit
def _may_be_ascii_name(data, start, end, ascii_words, names):
    """`_may_be_name` for an ASCII text."""
    whole, at_digit, digits = np.uint32(0), np.uint32(0), 0
    for place in range(start, end):
        code = np.uint32(ascii_words[data[place]])
        if code > _NINE:
            whole = np.uint32(np.uint32(whole * _MIX_1) + code)
        elif code:
            at_digit = whole if digits == 0 else at_digit
            digits += 1
    if _is_listed(names, _spread(np.uint32(0), whole), _WHOLE):
        return True
    return digits > 1 and _is_listed(names, _spread(np.uint32(0), at_digit), _CAMERA)


@njit
def _has_rare_gram(data, start, end, grams):
    """True if four neighbouring bytes, with the bit of case set, are in the table of `phrases.rare_grams`."""
    seen = U(0)
    for place in range(np.int64(start), np.int64(end) - 3):
        hashed = ((load32(data, place) | _FOUR_CASES) * _MIX & _LOW_32) >> _GRAM_SHIFT
        seen |= grams[hashed >> _IN_WORD_AT] >> (hashed & _PLACE)
    return seen & U(1) != 0


@njit
def _may_hold_phrase(data, start, end, ascii_words, names):
    """True if an event of `phrases.events` in an ASCII text is one of a phrase."""
    of_pattern = _OF_PATTERN if end - start <= _LONGEST_ASCII else np.uint8(0)
    seen = False
    word, before = np.uint32(0), np.uint32(0)
    for place in range(start, end):
        code = np.uint32(ascii_words[data[place]])
        if code:
            word = np.uint32((word << np.uint32(5)) + word) ^ code
        elif word:
            seen |= _is_listed(names, _spread(np.uint32(0), word), _WORD | of_pattern)
            seen |= _is_listed(names, _spread(before, word), _PAIR | of_pattern)
            before, word = word, np.uint32(0)
    if word:
        seen |= _is_listed(names, _spread(np.uint32(0), word), _WORD | of_pattern)
        seen |= _is_listed(names, _spread(before, word), _PAIR | of_pattern)
    return seen


@njit
def _may_hold_any_phrase(data, start, end, tables):
    """`_may_hold_phrase` for a text with characters beyond ASCII."""
    characters, names, folded = tables
    of_pattern = _OF_PATTERN if end - start <= _LONGEST_BEYOND_ASCII else np.uint8(0)
    seen = False
    word, before, letters = np.uint32(0), np.uint32(0), U(0)
    place = start
    while place <= end:
        bits, code, width = np.uint8(0), np.uint32(0), 1
        if place < end:
            code = np.uint32(data[place])
            if code >= _ASCII_END:
                code, width = _character(data, place, end)
            bits = characters[code]
        place += U(width)
        uncased = bits & _UNCASED
        if bits & (_LETTER | _DIGIT) and not uncased:
            word, letters = np.uint32((word << np.uint32(5)) + word) ^ np.uint32(folded[code]), U(0)
            continue
        if word:
            seen |= _is_listed(names, _spread(np.uint32(0), word), _WORD | of_pattern)
            seen |= _is_listed(names, _spread(before, word), _PAIR | of_pattern)
            before, word = word, np.uint32(0)
        if not uncased:
            letters = U(0)
            continue
        before, letters = np.uint32(0), ((letters << U(16)) ^ U(code)) & _THREE_LETTERS
        if letters >> U(32):
            three = _spread(np.uint32(letters >> U(16)), np.uint32(letters))
            seen |= _is_listed(names, three, _THREE | of_pattern)
    return seen


@njit
def _may_end_in_extension(data, end, bytes_table):
    """True for three or four letters or digits after a dot."""
    size = 3 if data[end - 4] == _DOT else 4
    if data[end - size - 1] != _DOT:
        return False
    for place in range(end - size, end):
        if not bytes_table[data[place]] & np.uint8(3):
            return False
    return True


@njit
def _text_work(data, start, end, tables):
    """FINE, TIDY or WORK, for a text of one byte or more."""
    bytes_table, ascii_words, grams, characters, names, folded = tables
    letters = digits = 0
    seen = doubled = before = np.uint8(0)
    for place in range(U(start), U(end)):  # unsigned: numba checks whether a signed index is negative
        bits = bytes_table[data[place]]
        seen |= bits
        doubled |= bits & before
        letters += bits & np.uint8(1)
        digits += (bits >> np.uint8(1)) & np.uint8(1)
        before = bits
    if seen & _DIRTY or (seen & _AMPERSAND and _may_hold_entity(data, start, end)):
        return WORK
    if seen & _MARK and _may_hold_code(data, start, end):
        return WORK
    weight = letters
    work = FINE
    if seen & _BEYOND_ASCII:
        work, more_letters, more_weight, more_digits = _walk(data, U(start), U(end), characters)
        letters, weight, digits = letters + more_letters, weight + more_weight, digits + more_digits
    if work == FINE and (doubled & _BLANK or data[start] == _BLANK_BYTE or data[end - 1] == _BLANK_BYTE):
        return TIDY
    if work != FINE:
        return work
    if letters == 0 or weight + digits < 2 or (not seen & _BLANK and seen & _ADDRESS):
        return WORK
    if digits > _MOST_DIGITS and _may_hold_number(data, U(start), U(end)):
        return WORK
    if end - start >= 5 and _may_end_in_extension(data, end, bytes_table):
        return WORK
    more = characters, names, folded
    if letters <= _MOST_LETTERS:
        if seen & _BEYOND_ASCII:
            if _may_be_name(data, U(start), U(end), more):
                return WORK
        elif _may_be_ascii_name(data, U(start), U(end), ascii_words, names):
            return WORK
    if not _has_rare_gram(data, U(start), U(end), grams):
        return FINE
    if not seen & _BEYOND_ASCII:
        return WORK if _may_hold_phrase(data, U(start), U(end), ascii_words, names) else FINE
    return WORK if _may_hold_any_phrase(data, U(start), U(end), more) else FINE


@njit
def _look_at_texts(texts, tables, longest, work):
    """Sets `work` for each text.

    `texts` is (data, offsets). `tables` holds the bits of bytes and of characters, the names, and the folded letters.
    """
    data, offsets = texts
    for row in range(len(work)):
        start, end = offsets[row], offsets[row + 1]
        if 0 < end - start <= longest:
            work[row] = _text_work(data, start, end, tables)
        else:
            work[row] = WORK


@njit
def _host_end(data, place, end, table):
    """Where the host that begins at `place` ends.

    `end` stands for a host that needs work (a port, numbers, upper case).
    """
    host = label = place
    while place < end and table[data[place]] & _HOST:
        if data[place] == _DOT:
            if place == label or place - label > _LONGEST_LABEL:
                return end
            label = place + U(1)
        place += U(1)
    if place == end or place == label or place - label > _LONGEST_LABEL or place - host > _LONGEST_HOST:
        return end
    return end if data[place] != _SLASH or _ZERO <= data[label] <= _NINE else place


@njit
def _escape_is_fine(data, place, end, table):
    """True if two hexadecimal digits follow the "%" at `place`, and they are not the ones of a dot."""
    if place + U(2) >= end:
        return False
    first, second = data[place + U(1)], data[place + U(2)]
    return table[first] & table[second] & _HEX != 0 and not (first == _TWO and second | _CASE == _LOWER_E)


@njit
def _may_end_in_svg(data, end):
    """True if the path before `end` may end in "svg" or "svgz"."""
    last, before = data[end - U(1)] | _CASE, data[end - U(2)] | _CASE
    return (last == _LOWER_G and before == _LOWER_V) or (last == _LOWER_Z and before == _LOWER_G)


@njit
def _url_needs_work(data, start, end, table):
    """True if a URL of at least _SHORTEST_URL bytes needs work."""
    for place, byte in enumerate((_LOWER_H, _LOWER_T, _LOWER_T, _LOWER_P)):
        if data[start + U(place)] != byte:
            return True
    place = start + (U(5) if data[start + U(4)] == _LOWER_S else U(4))
    if data[place] != _COLON or data[place + U(1)] != _SLASH or data[place + U(2)] != _SLASH:
        return True
    place = _host_end(data, place + U(3), end, table)
    if place == end:
        return True
    while place < end and data[place] != _QUESTION:
        bits = table[data[place]]
        if not bits & _SIMPLE_IN_PATH:
            if not bits & _PATH:
                return True
            if data[place] == _DOT:
                if data[place - U(1)] == _SLASH:
                    return True  # perhaps a dot segment
            elif not _escape_is_fine(data, place, end, table):
                return True
        place += U(1)
    if _may_end_in_svg(data, place):
        return True
    while place < end:
        if not table[data[place]] & _SIMPLE_IN_QUERY:
            if data[place] != _PERCENT or not _escape_is_fine(data, place, end, table):
                return True
        place += U(1)
    return False


@njit
def _flag_urls(data, offsets, table, longest, flags):
    for row in range(len(flags)):
        start, end = offsets[row], offsets[row + 1]
        fits = _SHORTEST_URL <= end - start <= longest
        flags[row] = not fits or _url_needs_work(data, U(start), U(end), table)


def text_work(texts: pa.Array) -> Work:
    """What each text needs.

    FINE: nothing. WORK: `clean_rules.clean_one_text` must see it. TIDY: `clean_rules.tidy` is enough. A TIDY text is
    valid UTF-8 without a line feed. The output of `tidy` must be looked at again, since it may be a text to drop.
    """
    data, offsets = string_buffers(texts)
    work = np.empty(len(texts), np.uint8)
    tables = _TEXT_BYTES, _ASCII_WORDS, _GRAMS, _CHARACTERS, _NAMES, _FOLDED
    _look_at_texts((frozen(data, np.uint8), frozen(offsets, np.int64)), tables, clean_rules.MAX_TEXT, work)
    return work


def url_needs_work(urls: pa.Array) -> Flags:
    """True for each URL that `clean_rules.canonical_url` must handle."""
    data, offsets = string_buffers(urls)
    flags = np.empty(len(urls), np.bool_)
    _flag_urls(frozen(data, np.uint8), frozen(offsets, np.int64), _URL_BYTES, clean_rules.MAX_URL, flags)
    return flags


def warm() -> None:
    """Compiles every kernel of this module."""
    text_work(pa.array(["A caption of five words"]))
    url_needs_work(pa.array(["http://example.com/a"]))
