#!/bin/sh -eu
# Mutation testing of the pure files: cargo-mutants changes one expression at a time, and the unit
# tests have to notice. The whole library takes minutes to build for each mutant; these files stand
# in a crate of their own, which takes seconds. Needs cargo-mutants (cargo install cargo-mutants).
#
#     tests/mutants.sh [OPTION-OF-CARGO-MUTANTS...]      such as: -f src/filter.rs, --list
#
# Status: that of cargo mutants: 0 if all are noticed, 2 if some are missed.
cd "$(dirname "$0")/.."
crate=${CARGO_TARGET_DIR:-target}/mutants
mkdir -p "$crate/src/image" "$crate/src/sys"

for file in placement filter image/scan sys/fnmatch; do
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
END
cat >"$crate/Cargo.toml" <<'END'
[package]
name = "pure"
version = "0.0.0"
edition = "2024"

[dependencies]
nix = { version = ">=0.30, <0.32" }

[dev-dependencies]
proptest = "1"
serde_cbor = { package = "serde_cbor_2", version = "0.13" }

[profile.dev]
debug = false

[workspace]
END
cp Cargo.lock "$crate/Cargo.lock"
mkdir -p "$crate/.cargo"
cat >"$crate/.cargo/mutants.toml" <<'END'
exclude_globs = ["src/sys/**"]
# What the compiler checks, or what no test can tell from the original: tests/mutants.md.
exclude_re = []
timeout_multiplier = 5.0
END
cd "$crate"
exec cargo mutants --no-shuffle "$@"
