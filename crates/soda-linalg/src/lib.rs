//! soda-linalg
