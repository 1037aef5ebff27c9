//! soda-models
