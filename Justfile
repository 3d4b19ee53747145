destdir := env("DESTDIR", "")
prefix := env("PREFIX", "/usr/local")
mandir := env("MANDIR", prefix / "share/man")
datadir := env("DATADIR", prefix / "share")

check: fmt lint test

fmt:
    cargo fmt --check

lint:
    cargo clippy --workspace --all-targets -- -D warnings

test:
    cargo test --workspace

man:
    mandoc -Tlint -Wwarning man/*.[1-8]

build:
    cargo build --release --locked

# What the tools cost, beside lsfd and lsof.
bench:
    cargo build --release --bins
    cargo bench -p fdkit-tests --bench bench

# What tables take before and after a restore; redraws the chart of the README.
bench-memory *sizes:
    cargo build --release --bins
    cargo bench -p fdkit-tests --bench memory -- {{sizes}}

# Which changes of the pure files no unit test notices. Needs cargo-mutants; 40 minutes for all files:
# just mutants, just mutants filter, just mutants image/scan.
mutants *files:
    tests/mutants.sh {{files}}

# Needs cargo-fuzz and a nightly toolchain: just fuzz stream, just fuzz text.
fuzz target:
    cd tests && cargo +nightly fuzz run {{target}}

# Every system call of the tools fails once (the suite fails one of each shape), which takes hours; the
# daemons answer under 50 scans each, the owner of a folder has 5,000 tries, and 2,000,000 images with
# contradictory records are planned.
soak:
    FDKIT_SOAK=1 cargo test -p fdkit-tests --test suite -- sweep daemons hostile_folders --nocapture
    FDKIT_MUTANTS=500000 cargo test --release -p fdkit-tests --test suite -- mutants --nocapture

demo:
    sh tests/demo.sh

install:
    #!/bin/sh -eu
    for b in fdscan fdimg fdrestore ttyctl; do
        install -Dm755 "target/release/$b" "{{destdir}}{{prefix}}/bin/$b"
        cd "bins/$b/completions"
        install -Dm644 "$b.bash" "{{destdir}}{{datadir}}/bash-completion/completions/$b"
        install -Dm644 "_$b" "{{destdir}}{{datadir}}/zsh/site-functions/_$b"
        install -Dm644 "$b.fish" "{{destdir}}{{datadir}}/fish/vendor_completions.d/$b.fish"
        cd ../../..
    done
    for m in man/*.[1-8]; do install -Dm644 "$m" "{{destdir}}{{mandir}}/man${m##*.}/${m##*/}"; done
