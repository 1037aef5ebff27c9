//! soda-train
