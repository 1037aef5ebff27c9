//! Numbers as options give them.

/// Reads a finite number.
pub(crate) fn finite(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim().parse().map_err(|_| "give a number, such as 0.5".to_owned())?;
    if number.is_finite() { Ok(number) } else { Err("give a finite number".to_owned()) }
}

/// Reads a seed.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| {
        let range = format!("a seed is a whole number from 0 to {}", u64::MAX);
        match text.trim().starts_with('-') {
            true => format!("{range}; no number stands for a random one"),
            false => range,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_or_refused_in_a_sentence() {
        assert_eq!(finite("-0.5"), Ok(-0.5));
        assert_eq!(finite("1e-3"), Ok(1e-3));
        assert_eq!(seed(&u64::MAX.to_string()), Ok(u64::MAX));
        for text in ["nan", "inf", "-inf", "1e999"] {
            assert!(finite(text).is_err_and(|reason| reason.contains("finite")), "{text}");
        }
        assert!(finite("a").is_err() && finite("").is_err());
        assert!(seed("-1").is_err_and(|reason| reason.contains("random")));
        for text in ["18446744073709551616", "1.5", "", "a"] {
            assert!(
                seed(text).is_err_and(|reason| reason.contains("18446744073709551615")),
                "{text}"
            );
        }
    }
}
