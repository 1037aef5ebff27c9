//! What a plan learns from: folders, and what a folder does not say of itself.
//!
//! A folder with captions and `subject.json` is named and no more. Folders of pictures alone, such as DreamBooth's, get
//! captions and prompts from the settings: `{class}` there is what the data set shows, and a kind is a table of settings for
//! data sets that are asked alike.
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

/// Stands for [`DataConfig::class`] in settings.
const CLASS: &str = "{class}";

/// A data set of a plan: the path of a folder, or a table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct DataConfig {
    /// The folder of pictures.
    pub folder: PathBuf,
    /// What they show, such as `dog`.
    #[serde(default)]
    pub class: Option<String>,
    /// Which of the plan's kinds it is of.
    #[serde(default)]
    pub kind: Option<String>,
}

impl DataConfig {
    /// `settings` with the class where they ask for it; whether they ask for none that is not known.
    pub(crate) fn fill(&self, settings: &mut Table) -> bool {
        settings.iter_mut().all(|(_, value)| fill(value, self.class.as_deref()))
    }
}

fn fill(value: &mut Value, class: Option<&str>) -> bool {
    match (value, class) {
        (Value::String(text), Some(class)) => {
            *text = text.replace(CLASS, class);
            true
        }
        (Value::String(text), None) => !text.contains(CLASS),
        (Value::Array(values), _) => values.iter_mut().all(|value| fill(value, class)),
        (Value::Table(table), _) => table.iter_mut().all(|(_, value)| fill(value, class)),
        _ => true,
    }
}

impl<'de> Deserialize<'de> for DataConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FolderOrTable)
    }
}

struct FolderOrTable;

impl<'de> Visitor<'de> for FolderOrTable {
    type Value = DataConfig;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the path of a folder, or a table with `folder`, `class` and `kind`")
    }

    fn visit_str<E: Error>(self, folder: &str) -> Result<DataConfig, E> {
        Ok(DataConfig { folder: folder.into(), class: None, kind: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DataConfig, A::Error> {
        DataConfig::deserialize(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn data(text: &str) -> Result<DataConfig, toml::de::Error> {
        #[derive(Debug, Deserialize)]
        struct One {
            data: DataConfig,
        }
        toml::from_str::<One>(&format!("data = {text}")).map(|one| one.data)
    }

    #[test]
    fn a_data_set_is_a_folder_or_a_table() {
        let bare = data("'a/dog'").unwrap();
        assert_eq!(bare, data("{ folder = 'a/dog' }").unwrap());
        let told = data("{ folder = 'a/dog', class = 'dog', kind = 'live' }").unwrap();
        assert_eq!((told.class.as_deref(), told.kind.as_deref()), (Some("dog"), Some("live")));
        assert!(data("{ folder = 'a', clas = 'b' }").unwrap_err().to_string().contains("`class`"));
        assert!(data("3").unwrap_err().to_string().contains("the path of a folder"));
    }

    #[test]
    fn the_class_is_filled_in_wherever_it_is_asked_for() {
        let settings = || -> Table {
            toml::from_str(
                "prompt = 'a {class}'\nsteps = 3\nsamples.prompts = ['x', 'a wet {class}']",
            )
            .unwrap()
        };
        let mut filled = settings();
        assert!(data("{ folder = 'a', class = 'stuffed animal' }").unwrap().fill(&mut filled));
        let text = toml::to_string(&filled).unwrap();
        assert_eq!(text.matches("stuffed animal").count(), 2, "{text}");
        assert!(!text.contains(CLASS));

        let bare = data("'a'").unwrap();
        assert!(!bare.fill(&mut settings()));
        let mut without: Table = toml::from_str("prompt = 'a {mug}'").unwrap();
        assert!(bare.fill(&mut without), "nothing is asked for");
    }
}
