//! Deserializes a method from its name, `method = "dora"`, or from a table with its settings.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize as _, Deserializer};
use soda_adapters::MethodConfig;

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<MethodConfig, D::Error> {
    deserializer.deserialize_any(NameOrTable)
}

struct NameOrTable;

impl<'de> Visitor<'de> for NameOrTable {
    type Value = MethodConfig;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a method, or a table with its settings")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<MethodConfig, E> {
        MethodConfig::preset(name).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<MethodConfig, A::Error> {
        MethodConfig::deserialize(MapAccessDeserializer::new(map))
    }
}
