#!/bin/sh
# Run commands in turn, A B A B …, so that a machine that drifts treats them alike:
#
#     sh examples/bench/compare.sh ROUNDS 'command a' 'command b' …
set -u
if [ $# -lt 2 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
rounds=$1
shift
round=1
while [ "$round" -le "$rounds" ]; do
    for command in "$@"; do
        echo "--- round $round: $command" >&2
        sh -c "$command" || echo "--- failed with exit code $?" >&2
    done
    round=$((round + 1))
done
