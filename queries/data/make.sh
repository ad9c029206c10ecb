#!/bin/sh
# Makes default.parquet anew, from packages alone (Debian's wordnet-base, wordfreq of PyPI), and says whether it is the
# list that stands here:
#     sh queries/data/make.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
[ -x "$python" ] || python=python3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
if [ -f /usr/share/wordnet/data.noun ]; then
    wordnet=/usr/share/wordnet
else
    apt-get download wordnet-base
    dpkg -x wordnet-base_*.deb wordnet
    wordnet=wordnet/usr/share/wordnet
fi
if "$python" -m pip --version >/dev/null 2>&1; then pip="$python -m pip"; else pip="python3 -m pip"; fi
$pip download --quiet --no-deps --dest . wordfreq==3.1.1
"$python" -m zipfile -e wordfreq-3.1.1-*.whl wordfreq
PYTHONPATH=$here/../.. "$python" -m queries.build --output list --wordnet "$wordnet" \
    --counts wordfreq/wordfreq/data/large_en.msgpack.gz
if cmp -s list/queries.parquet "$here/default.parquet"; then
    echo "default.parquet is the same, byte for byte"
else
    cp list/queries.parquet "$here/default.parquet"
    echo "default.parquet is new: put its digest into README.md"
fi
