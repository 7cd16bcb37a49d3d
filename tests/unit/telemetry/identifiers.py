"""Strings that could name a patient, a slide, a file or a place on a disk."""

from __future__ import annotations

from hypothesis import strategies as st

barcodes = st.from_regex(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(-[0-9]{2}[A-Z](-[0-9]{2}-DX[0-9])?)?", fullmatch=True)
numbers = st.from_regex(r"(mrn|pat|case|h)?-?[0-9]{7,10}", fullmatch=True)
dates = st.dates().map(lambda day: day.strftime("%d-%m-%Y"))
words = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)
paths = st.lists(words, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
shares = st.lists(words, min_size=1, max_size=4).map(lambda parts: "\\\\" + "\\".join(parts))
files = st.tuples(words, st.sampled_from([".svs", ".png", ".jpg", ".tif", ".csv"])).map("".join)
people = st.tuples(words, words).map(lambda both: f"{both[0].title()}, {both[1].title()}")

identifiers = st.one_of(barcodes, barcodes.map(str.lower), numbers, dates, paths, shares, files, people)
