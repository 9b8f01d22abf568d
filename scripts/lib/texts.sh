# shellcheck shell=bash
# Sourced after common.sh: free texts out of Debian packages, of which nothing is installed.

# unpack_debian PACKAGE FOLDER: the package's files in FOLDER.
unpack_debian() {
    need apt-get "the texts come from Debian packages: run this on Debian or Ubuntu"
    need dpkg-deb "Debian: apt install dpkg"
    mkdir -p "$2"
    (cd "$2" && apt-get download "$1" 2>/dev/null) || fail "apt-get cannot download $1" "run apt-get update first"
    dpkg-deb --extract "$2"/"$1"_*.deb "$2"
}

# fetch_austen FOLDER: Jane Austen's novels (public domain, package r-cran-janeaustenr): leaves emma.txt, mansfieldpark.txt,
# northangerabbey.txt, persuasion.txt, prideprejudice.txt and sensesensibility.txt in FOLDER, a paragraph a line.
fetch_austen() {
    local folder=$1
    if [ -e "$folder/prideprejudice.txt" ]; then
        echo "    $folder is there already"
        return
    fi
    unpack_debian r-cran-janeaustenr "$folder/package"
    python3 - "$folder/package/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb" "$folder" <<'PYTHON'
import pathlib, struct, sys, zlib

# R's lazy-load database: each object is its length in 4 bytes, then its serialisation, compressed.
data, folder = pathlib.Path(sys.argv[1]).read_bytes(), pathlib.Path(sys.argv[2])
names = {"emma": "Emma Woodhouse, handsome", "mansfieldpark": "Miss Maria Ward", "northangerabbey": "Catherine Morland in her infancy",
         "persuasion": "Kellynch Hall", "prideprejudice": "truth universally acknowledged", "sensesensibility": "family of Dashwood"}
at = 0
while at < len(data):
    stream = zlib.decompressobj()
    raw = stream.decompress(data[at + 4:])
    at = len(data) - len(stream.unused_data)
    # A vector of texts: after the header, flags and length, then flags, length and bytes of each line.
    start = raw.find(b"\x00\x00\x00\x10")
    if start < 0:
        continue
    count, = struct.unpack_from(">i", raw, start + 4)
    place, lines = start + 8, []
    try:
        for _ in range(count):
            flags, length = struct.unpack_from(">ii", raw, place)
            if flags & 255 != 9:
                break
            lines.append(raw[place + 8:place + 8 + max(length, 0)].decode("utf-8"))
            place += 8 + max(length, 0)
    except (struct.error, UnicodeDecodeError):
        continue
    # Lines of 70 characters become paragraphs again.
    text = "\n".join(" ".join(part.split("\n")) for part in "\n".join(lines).split("\n\n") if part.strip()) + "\n"
    for name, words in names.items():
        if words in text[:6000]:
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
            names.pop(name)
            break
if names:
    sys.exit("error: the package does not hold " + ", ".join(names))
PYTHON
    rm -r "$folder/package"
}

# fetch_faq FILE: questions and answers about Debian (package debian-faq, copyright Software in the Public Interest, free to copy
# with its notice), a paragraph a line, the contents and the notices before and behind left out.
fetch_faq() {
    local file=$1
    if [ -e "$file" ]; then
        echo "    $file is there already"
        return
    fi
    unpack_debian debian-faq "$file.package"
    python3 - "$file.package/usr/share/doc/debian/FAQ/debian-faq.en.txt.gz" "$file" <<'PYTHON'
import gzip, pathlib, sys

text = gzip.open(sys.argv[1], "rt", encoding="utf-8").read().replace("\N{NO-BREAK SPACE}", " ")
start, end = (text.index(f"\nChapter {number}. ") for number in (1, 16))
paragraphs = (" ".join(part.split()) for part in text[start:end].split("\n\n"))
pathlib.Path(sys.argv[2]).write_text("\n".join(p for p in paragraphs if p) + "\n", encoding="utf-8")
PYTHON
    rm -r "$file.package"
}
