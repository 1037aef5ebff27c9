//! Parameters with their own learning rate, and the key under which optimizer states are stored.

use std::borrow::Cow;
use std::fmt;

/// Rows and columns of a parameter as a matrix. The last axis gives the columns; a vector is one row.
pub(crate) type MatrixShape = [usize; 2];

/// A set of parameters that can have its own learning rate.
///
/// The name is part of the keys of a stored [`OptimizerState`](crate::OptimizerState).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParamGroup(Cow<'static, str>);

impl ParamGroup {
    /// The group of all parameters of a module whose caller names no groups.
    pub const DEFAULT: Self = Self::new("params");

    /// A group of this name, which contains no dot.
    pub const fn new(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ParamGroup {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The group and the shape that the parameters of one batch share. Its text is `group.ROWSxCOLS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatchKey {
    pub(crate) group: ParamGroup,
    pub(crate) shape: MatrixShape,
}

impl BatchKey {
    /// Reads the key at the start of a stored name: `text.4x8` of `text.4x8.moment`.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let mut words = name.split('.');
        let (group, shape) = (words.next()?, words.next()?);
        let (rows, cols) = shape.split_once('x')?;
        let group = ParamGroup(Cow::Owned(group.to_owned()));
        Some(Self { group, shape: [rows.parse().ok()?, cols.parse().ok()?] })
    }
}

impl fmt::Display for BatchKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, cols] = self.shape;
        write!(formatter, "{}.{rows}x{cols}", self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_its_own_text() {
        let key = BatchKey { group: ParamGroup::new("text"), shape: [4, 8] };
        assert_eq!(key.to_string(), "text.4x8");
        assert_eq!(BatchKey::parse("text.4x8.moment"), Some(key));
        assert_eq!(BatchKey::parse("text.4"), None);
        assert_eq!(BatchKey::parse("text.4xa.moment"), None);
    }
}
