#!/bin/sh -eu
# Mutation testing of the pure files: cargo-mutants changes one expression at a time, and the unit
# tests of that file have to notice. The library takes a minute to build for each mutant; these files
# are copied into a crate of their own, which takes seconds. Needs cargo-mutants
# (cargo install --locked cargo-mutants).
#
#     tests/mutants.sh [-o OPTION-OF-CARGO-MUTANTS]... [FILE...]
#
# FILE is one of the files listed below; without FILE, all of them are tested. Example:
#     tests/mutants.sh -o --list filter
# Status: 0 if each mutant is noticed, 1 if some are missed. The lists are in target/mutants/FILE.out.
cd "$(dirname "$0")/.."
crate=${CARGO_TARGET_DIR:-target}/mutants
options=
while [ "${1-}" = -o ]; do
    options="$options $2"
    shift 2
done
[ $# -gt 0 ] || set -- placement filter image/scan

mkdir -p "$crate/src/image" "$crate/src/sys" "$crate/.cargo"
for file in placement filter image/scan sys/fnmatch word_enum; do
    cp "lib/src/$file.rs" "$crate/src/$file.rs"
done
cat >"$crate/src/lib.rs" <<'END'
pub mod filter;
pub mod image {
    pub mod scan;
}
pub mod placement;
pub mod sys {
    pub mod fnmatch;
}
pub mod word_enum;
END
cat >"$crate/Cargo.toml" <<'END'
[package]
name = "pure"
version = "0.0.0"
edition = "2024"

[dependencies]
argh = "0.1"
nix = { version = ">=0.30, <0.32" }

[dev-dependencies]
proptest = "1"
serde_cbor = { package = "serde_cbor_2", version = "0.13" }

[profile.dev]
debug = false

[workspace]
END
cp Cargo.lock "$crate/Cargo.lock"
cat >"$crate/.cargo/mutants.toml" <<'END'
# Mutants that no test can tell from the original, each with the reason.
exclude_re = [
    # Keys of one hash are compared byte by byte, so that any hash will do.
    "image/scan.rs.* (in hash|replace hash -> .*)$",
    # A string of exactly MAX_ITEM bytes is refused for its head, a few lines later, by the same words.
    "image/scan.rs.* replace > with >= in raw$",
]
minimum_test_timeout = 20
END
export PROPTEST_CASES="${PROPTEST_CASES:-64}"

cd "$crate"
missed=0
for file; do
    name=$(basename "$file")
    # shellcheck disable=SC2086 # Options are words.
    cargo mutants --no-shuffle -f "src/$file.rs" -o "$name.out" $options -- "$name::" || missed=1
done
exit "$missed"
