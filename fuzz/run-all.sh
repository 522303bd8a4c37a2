#!/bin/sh
# Fuzzes every target for so many seconds: fuzz/run-all.sh SECONDS
# Needs cargo-fuzz (cargo install cargo-fuzz). RUSTC_BOOTSTRAP lets a stable compiler take its flags.
set -eu
seconds=${1:?usage: fuzz/run-all.sh SECONDS}
cd "$(dirname "$0")"
export RUSTC_BOOTSTRAP=1
for file in fuzz_targets/*.rs; do
    target=$(basename "$file" .rs)
    mkdir -p "corpus/$target" "regressions/$target"
    echo "== $target: $seconds s"
    cargo fuzz run --sanitizer none --fuzz-dir . "$target" \
        "corpus/$target" "seeds/$target" "regressions/$target" -- \
        -max_total_time="$seconds" -max_len=8192 -timeout=60 -rss_limit_mb=3000
done
