//! soda-adapters
