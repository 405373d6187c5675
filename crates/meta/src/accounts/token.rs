use headworks_domain::Secret;
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};

use crate::{Error, Result};

/// How every token begins, so that people and scanners of source code know one.
const PREFIX: &str = "hw_";
const ID_CHARS: usize = 10;
/// Of 36 letters: 258 bits.
const SECRET_CHARS: usize = 50;
/// Of the checksum, by which a scanner tells a token from something like one without asking us.
const SUM_CHARS: usize = 6;

/// Letters that look the same whoever writes them, none of them special anywhere.
const LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A new token, `hw_` ID `_` SECRET SUM: its id, and its whole text.
pub(super) fn new(random: &SystemRandom) -> Result<(String, Secret)> {
    let id = digits(random, ID_CHARS)?;
    let body = format!("{PREFIX}{id}_{}", digits(random, SECRET_CHARS)?);
    let text = format!("{body}{}", sum(&body));
    Ok((id, Secret::new(text)))
}

/// So many letters and digits by chance.
pub(super) fn digits(random: &SystemRandom, count: usize) -> Result<String> {
    let mut text = String::with_capacity(count);
    let mut bytes = [0; 64];
    while text.len() < count {
        random.fill(&mut bytes).map_err(|_| Error::NoRandomness)?;
        // 252 is the last multiple of 36: a remainder of more would favour the first letters.
        let letters = bytes.iter().filter(|byte| **byte < 252).map(|byte| char::from(LETTERS[usize::from(*byte) % 36]));
        text.extend(letters.take(count - text.len()));
    }
    Ok(text)
}

/// The id of a token; `None` when the text is none.
pub(super) fn id(text: &str) -> Option<&str> {
    if !text.is_ascii() || text.len() != PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS + SUM_CHARS {
        return None;
    }
    let (body, given) = text.split_at(text.len() - SUM_CHARS);
    let (id, _) = body.strip_prefix(PREFIX)?.split_once('_')?;
    (id.len() == ID_CHARS && sum(body) == given).then_some(id)
}

fn sum(body: &str) -> String {
    hash(body)[..SUM_CHARS].to_owned()
}

/// How a token is kept: it is random enough for a hash without salt.
pub(super) fn hash(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// True when a text is the token of a hash. What a comparison's time tells of a hash helps nobody to find its text.
pub(super) fn fits(kept: &str, text: &str) -> bool {
    kept == hash(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_recognised() {
        let random = SystemRandom::new();
        let (own, token) = new(&random).unwrap();
        let text = token.expose();
        assert_eq!(id(text), Some(own.as_str()));
        assert!(fits(&hash(text), text));
        let mut other = text.to_owned();
        let last = if other.pop() == Some('0') { '1' } else { '0' };
        other.push(last);
        for bad in
            ["", "hw_", &text[1..], &other, &text.to_uppercase(), &text.replace('h', "ü"), &"_".repeat(text.len())]
        {
            assert_eq!(id(bad), None, "{bad}");
        }
        assert_ne!(new(&random).unwrap().0, own);
    }

    #[test]
    fn every_letter_is_as_likely() {
        let text = digits(&SystemRandom::new(), 36_000).unwrap();
        for letter in LETTERS {
            let times = text.bytes().filter(|byte| byte == letter).count();
            assert!((800..1_200).contains(&times), "{}: {times}", char::from(*letter));
        }
    }
}
