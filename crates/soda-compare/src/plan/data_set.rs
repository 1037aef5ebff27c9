//! The data sets of a plan: a folder, and optionally its class and kind.
//!
//! A folder with captions and `subject.json` needs no more. A folder of images alone, such as DreamBooth's,
//! gets captions and prompts from the settings. There, `{class}` stands for the class of the data set. A
//! kind is a table of settings for data sets that share prompts.
//!
//! ```toml
//! [train]
//! trigger = "sks {class}"
//! prompt = "a photo of a [trigger]"
//!
//! [kind.live]
//! samples.prompts = ["a [trigger] wearing a red hat", "a [trigger] in the snow"]
//!
//! [score]
//! data = [{ folder = "dataset/dog", class = "dog", kind = "live" }, "photos/mug"]
//! ```

use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

/// The placeholder for [`DataSetConfig::class`] in settings.
const CLASS: &str = "{class}";

/// A data set of a plan: the path of a folder, or a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct DataSetConfig {
    /// The folder of images.
    pub folder: PathBuf,
    /// The class of the subject, such as `dog`.
    #[serde(default)]
    pub class: Option<String>,
    /// The kind of the data set, as the plan defines it.
    #[serde(default)]
    pub kind: Option<String>,
}

impl DataSetConfig {
    /// Replaces `{class}` in `settings`. Returns false if they need a class and the data set has none.
    pub(super) fn fill_class(&self, settings: &mut Table) -> bool {
        settings.iter_mut().all(|(_, value)| fill_class(value, self.class.as_deref()))
    }
}

fn fill_class(value: &mut Value, class: Option<&str>) -> bool {
    match (value, class) {
        (Value::String(text), Some(class)) => {
            *text = text.replace(CLASS, class);
            true
        }
        (Value::String(text), None) => !text.contains(CLASS),
        (Value::Array(values), _) => values.iter_mut().all(|value| fill_class(value, class)),
        (Value::Table(table), _) => table.iter_mut().all(|(_, value)| fill_class(value, class)),
        _ => true,
    }
}

impl<'de> Deserialize<'de> for DataSetConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FolderOrTable)
    }
}

struct FolderOrTable;

impl<'de> Visitor<'de> for FolderOrTable {
    type Value = DataSetConfig;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the path of a folder, or a table with `folder`, `class` and `kind`")
    }

    fn visit_str<E: Error>(self, folder: &str) -> Result<DataSetConfig, E> {
        Ok(DataSetConfig { folder: folder.into(), class: None, kind: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DataSetConfig, A::Error> {
        DataSetConfig::deserialize(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn parse(text: &str) -> Result<DataSetConfig, toml::de::Error> {
        #[derive(Debug, Deserialize)]
        struct One {
            data: DataSetConfig,
        }
        toml::from_str::<One>(&format!("data = {text}")).map(|one| one.data)
    }

    #[test]
    fn a_data_set_is_a_folder_or_a_table() {
        let bare = parse("'a/dog'").unwrap();
        assert_eq!(bare, parse("{ folder = 'a/dog' }").unwrap());
        let table = parse("{ folder = 'a/dog', class = 'dog', kind = 'live' }").unwrap();
        assert_eq!((table.class.as_deref(), table.kind.as_deref()), (Some("dog"), Some("live")));
        assert!(parse("{ folder = 'a', clas = 'b' }").unwrap_err().to_string().contains("`class`"));
        assert!(parse("3").unwrap_err().to_string().contains("the path of a folder"));
    }

    #[test]
    fn the_class_is_filled_in_everywhere() {
        let settings = || -> Table {
            toml::from_str(
                "prompt = 'a {class}'\nsteps = 3\nsamples.prompts = ['x', 'a wet {class}']",
            )
            .unwrap()
        };
        let mut filled = settings();
        assert!(
            parse("{ folder = 'a', class = 'stuffed animal' }").unwrap().fill_class(&mut filled)
        );
        let text = toml::to_string(&filled).unwrap();
        assert_eq!(text.matches("stuffed animal").count(), 2, "{text}");
        assert!(!text.contains(CLASS));

        let bare = parse("'a'").unwrap();
        assert!(!bare.fill_class(&mut settings()));
        let mut without: Table = toml::from_str("prompt = 'a {mug}'").unwrap();
        assert!(bare.fill_class(&mut without), "the settings need no class");
    }
}
