# One line per thing to do. CI and people run the same steps (scripts/ci.sh).

default:
    @just --list

# The server, optimized.
build:
    cargo build --release

# Serve the bundled model; more flags may follow.
serve *flags:
    cargo run --release -- serve {{flags}}

# All tests: the README's second command.
test *filter:
    cargo test --release {{filter}}

# Format in place.
fmt:
    cargo fmt

# Clippy; warnings are errors.
lint:
    scripts/ci.sh lint

# The crate's documentation; warnings are errors.
doc:
    scripts/ci.sh doc

# Benchmarks; VERDICT_BENCH_MODEL=DIR picks another checkpoint.
bench *names:
    cargo bench {{names}}

# Everything that CI checks.
ci:
    scripts/ci.sh

# The image, with the commit that is built recorded in it.
image tag="verdict":
    docker build --build-arg VERDICT_COMMIT="$(git rev-parse --short=12 HEAD)" -t {{tag}} .
