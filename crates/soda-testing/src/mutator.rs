//! A deterministic generator of damaged inputs.

/// Numbers at which readers overflow, allocate without bound, or divide by zero.
const NUMBERS: &[&str] = &[
    "0",
    "1",
    "2",
    "3",
    "-1",
    "7",
    "255",
    "1e308",
    "-1e308",
    "1e-320",
    "0.5",
    "65536",
    "1000000",
    "16777216",
    "2147483648",
    "4294967295",
    "4294967296",
    "1099511627776",
    "9007199254740993",
    "4611686018427387904",
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999999999",
    "null",
    "[]",
];

/// Texts that are dangerous somewhere: in paths, URLs, JSON and messages.
const PIECES: &[&str] = &[
    "..",
    "/",
    "\\",
    "../../",
    "\0",
    "\n",
    "\"",
    "{",
    "[",
    "]",
    "}",
    ":",
    "%2e",
    "-1",
    "1e400",
    "null",
    "18446744073709551616",
    "file:///",
    "//",
    "@",
    "#",
    "?",
    "*",
    "W/",
    "-of-",
    ".safetensors",
    "é",
    "\u{202e}",
    "\u{feff}",
    "\u{1b}[2J",
];

/// A generator of damaged inputs. The same number gives the same inputs.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// Makes the generator of input `number`.
    pub fn new(number: u64) -> Self {
        Self { state: number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d }
    }

    /// A number below `end`, or 0 if `end` is 0. The generator is SplitMix64.
    pub fn below(&mut self, end: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % (end as u64).max(1)) as usize
    }

    /// Damages `seed` in one to four places: bits, bytes, lengths, and numbers and names of a text.
    ///
    /// The header of a safetensors file is damaged as a text, and keeps its right length.
    pub fn damage(&mut self, seed: &[u8]) -> Vec<u8> {
        if let Some((header, data)) = split_safetensors(seed)
            && self.below(4) > 0
        {
            let header = self.damage_text(header.to_vec());
            let length = (header.len() as u64).to_le_bytes();
            return [&length[..], &header, data].concat();
        }
        match std::str::from_utf8(seed).is_ok() && self.below(4) > 0 {
            true => self.damage_text(seed.to_vec()),
            false => self.damage_bytes(seed.to_vec()),
        }
    }

    fn damage_text(&mut self, mut text: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(4) {
            match self.below(7) {
                0..3 => self.replace_number(&mut text),
                3 => self.repeat_string(&mut text),
                4 => self.remove(&mut text),
                5 => {
                    let (at, piece) = (self.below(text.len() + 1), self.below(PIECES.len()));
                    text.splice(at..at, PIECES[piece].bytes());
                }
                _ => text = self.damage_bytes(text),
            }
        }
        text
    }

    fn damage_bytes(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0..3 => {
                    let bit = 1 << self.below(8);
                    bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= bit);
                }
                3..5 => {
                    let value = [0, 1, 0x7f, 0x80, 0xff, b'{', b'"', b'\n'][self.below(8)];
                    bytes.get_mut(at).into_iter().for_each(|byte| *byte = value);
                }
                5 => bytes.truncate(at),
                6 => {
                    let more: Vec<u8> =
                        (0..=self.below(8)).map(|_| self.below(256) as u8).collect();
                    bytes.splice(at..at, more);
                }
                _ => self.remove(&mut bytes),
            }
        }
        bytes
    }

    /// Replaces a run of digits by one of [`NUMBERS`].
    fn replace_number(&mut self, text: &mut Vec<u8>) {
        let run = self.run(text, |byte| byte.is_ascii_digit());
        let number = NUMBERS[self.below(NUMBERS.len())];
        text.splice(run, number.bytes());
    }

    /// Replaces a word by another word of the text.
    fn repeat_string(&mut self, text: &mut Vec<u8>) {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
        let word = self.run(text, is_word);
        let word = text[word].to_vec();
        let other = self.run(text, is_word);
        text.splice(other, word);
    }

    fn remove(&mut self, bytes: &mut Vec<u8>) {
        let start = self.below(bytes.len());
        let end = (start + 1 + self.below(24)).min(bytes.len());
        bytes.drain(start.min(end)..end);
    }

    /// The next run of bytes of a kind after a random place. Empty if there is none.
    fn run(&mut self, text: &[u8], is_part: impl Fn(u8) -> bool) -> std::ops::Range<usize> {
        let from = self.below(text.len());
        let rest = text.get(from..).unwrap_or_default();
        let start = from + rest.iter().position(|byte| is_part(*byte)).unwrap_or(rest.len());
        let length = text[start..].iter().take_while(|byte| is_part(**byte)).count();
        start..start + length
    }
}

/// The header and the data of a safetensors file.
fn split_safetensors(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    (rest.first() == Some(&b'{')).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_reproducible_and_differ() {
        let seed = br#"{"a": 12, "b": [3, 4]}"#;
        let inputs: Vec<_> = (0..100).map(|number| Mutator::new(number).damage(seed)).collect();
        let again: Vec<_> = (0..100).map(|number| Mutator::new(number).damage(seed)).collect();
        assert_eq!(inputs, again);
        let same = inputs.iter().filter(|input| input[..] == seed[..]).count();
        assert!(same < 20, "{same} inputs are not damaged");
        assert!(inputs.iter().any(|input| input.ends_with(b"}") && input.len() > seed.len()));
        // No input and no empty input makes the generator itself panic.
        (0..1000).for_each(|number| drop(Mutator::new(number).damage(b"")));
    }

    #[test]
    fn the_header_of_a_safetensors_file_keeps_its_length() {
        let seed = [&17u64.to_le_bytes()[..], br#"{"a": [1, 2, 33]}"#, &[0; 8]].concat();
        let whole = |input: &Vec<u8>| split_safetensors(input).is_some_and(|(_, d)| d == [0; 8]);
        let kept = (0..200).map(|number| Mutator::new(number).damage(&seed)).filter(whole).count();
        assert!(kept > 50, "{kept}");
    }
}
