//! Numbers of things in messages.

/// Returns a number with its noun, in the plural unless the number is 1.
///
/// ```
/// assert_eq!(soda_pipeline::counted(1, "layer"), "1 layer");
/// assert_eq!(soda_pipeline::counted(0, "layer"), "0 layers");
/// ```
pub fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
