//! The fuzzing functions over their corpus and over seeded mutations of it: a
//! bounded run on stable. `cargo fuzz` runs them without end (docs/security.md).

#[expect(unreachable_pub, reason = "a crate of its own for cargo fuzz")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::{fs, path::Path};

/// Mutations of each function's corpus.
const RUNS: usize = 3000;
/// Longest input, in bytes: what is found in a long one is found in a short one.
const LONGEST: usize = 8 << 10;

/// Numbers whose sequence is that of their seed (Steele, Lea and Flood's SplitMix64, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// What breaks parsers.
const PIECES: [&[u8]; 20] = [
    b"\0",
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"-1",
    b"0",
    b"1e999",
    b"18446744073709551616",
    b"\xff",
    b"\xf0\x9f\x98\x80",
    b"\\ud800",
    b"{query}",
    b"{document}",
    b"<|im_end|>",
    b"NaN",
];

fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(data.len() + 1);
        let end = at + random.below((data.len() - at).min(40) + 1);
        match random.below(6) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 => drop(data.drain(at..end)),
            2 => data.splice(at..at, PIECES[random.below(PIECES.len())].iter().copied()).for_each(drop),
            3 => {
                let copied = data[at..end].to_vec();
                data.splice(at..at, copied).for_each(drop);
            }
            4 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            _ => data.truncate(data.len() - random.below(data.len().min(8) + 1)),
        }
    }
    data.truncate(LONGEST);
    data
}

/// Runs `target` over the corpus `name` and over mutations of it; a panic is told with its input.
fn run(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut files: Vec<_> =
        fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("readable")).collect();
    assert!(!seeds.is_empty());
    let mut random = Random(0x5eed);
    let mutated = std::iter::repeat_with(|| mutate(&seeds, &mut random)).take(RUNS);
    for data in seeds.clone().into_iter().chain(mutated) {
        if std::panic::catch_unwind(|| target(&data)).is_err() {
            panic!("{name} panics at {:?}", String::from_utf8_lossy(&data));
        }
    }
}

#[test]
fn requests() {
    run("requests", targets::requests);
}

#[test]
fn messages() {
    run("messages", targets::messages);
}

#[test]
fn prompts() {
    run("prompts", targets::prompts);
}

#[test]
fn profiles() {
    run("profiles", targets::profiles);
}

#[test]
fn configs() {
    run("configs", targets::configs);
}

#[test]
fn tensors() {
    run("tensors", targets::tensors);
}

#[test]
fn scheduling() {
    run("scheduling", targets::scheduling);
}
