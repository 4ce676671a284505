#!/bin/sh
# Train English → German on Multi30k and score test_2016_flickr.
#
#     examples/multi30k/run.sh DATA [MODEL [TIME]]
#
# DATA holds train.en, train.de, val.en, val.de, test_2016_flickr.en and test_2016_flickr.de, raw.
set -eu
DATA=${1:?give the folder that holds train.en, train.de, …}
MODEL=${2:-model}
TIME=${3:-1h}

[ -d "$MODEL/tokenizer" ] || tfm train-tokenizer "$DATA/train.en" "$DATA/train.de" -m "$MODEL"
tfm train --src "$DATA/train.en" --tgt "$DATA/train.de" \
    --valid-src "$DATA/val.en" --valid-tgt "$DATA/val.de" -m "$MODEL" --max-time "$TIME"
tfm translate "$DATA/test_2016_flickr.en" -m "$MODEL" -o "$MODEL/test_2016_flickr.out"
tfm evaluate --ref "$DATA/test_2016_flickr.de" --hyp "$MODEL/test_2016_flickr.out"
