# The whole path on numbers, dates and times: text → tokenizer → training → translation → score.
set -eu
BIN=${BIN:-.venv/bin}
HERE=$(dirname "$0")
DATA=$HERE/data
MODEL=$HERE/model
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '$ tfm %s\n' "$*"; "$BIN/tfm" "$@"; }

rm -rf "$MODEL" # of an earlier demo

say "1. Sentences: English numbers, dates and times with their German translations"
"$BIN/python" "$HERE/generate.py" --out "$DATA"
paste "$DATA/train.en" "$DATA/train.de" | head -n 5

say "2. A tokenizer: the pieces that words are made of"
run train-tokenizer "$DATA/train.en" "$DATA/train.de" -m "$MODEL" --vocab-size 600

say "3. A Transformer, trained from nothing"
run train --src "$DATA/train.en" --tgt "$DATA/train.de" \
    --valid-src "$DATA/valid.en" --valid-tgt "$DATA/valid.de" \
    -m "$MODEL" --config "$HERE/numbers.toml"

say "4. How good is it on sentences with numbers it has never seen?"
run translate "$DATA/test.en" -m "$MODEL" -o "$DATA/test.out"
run evaluate --ref "$DATA/test.de" --hyp "$DATA/test.out"
"$BIN/python" "$HERE/exact_match.py" "$DATA/test.out" "$DATA/test.de"

say "5. Your turn. It answers a line at a time; for example:"
for line in "three hundred and forty-two" "the train leaves at half past seven"; do
    printf '$ echo "%s" | tfm translate -m %s\n' "$line" "$MODEL"
    echo "$line" | "$BIN/tfm" translate -m "$MODEL"
done
if [ -t 0 ]; then
    printf '\nType a number, a date or a time in English words (Ctrl-D ends):\n'
    "$BIN/tfm" translate -m "$MODEL" || true
fi
