//! The chat template of Qwen3, for one message of the user.
//!
//! Image models put a prompt into the chat that the language model was trained on, and let it begin the
//! answer. With thinking disabled, the answer begins with an empty block of thoughts:
//!
//! ```text
//! <|im_start|>user
//! a red mug<|im_end|>
//! <|im_start|>assistant
//! <think>
//!
//! </think>
//!
//! ```
//!
//! A template is a program in Jinja. It is not run here: this crate writes the text itself, and refuses a
//! template that would write another one.

use std::path::Path;

use serde_json::Value;

use super::files::refuse;
use crate::error::ModelError;
use crate::input_file::{SizeLimit, read_text};

/// The file of a template. It wins over the template in `tokenizer_config.json`, as in transformers.
const FILE: &str = "chat_template.jinja";

/// How a template of Qwen3's family writes a message, without white space and with one kind of quotes.
const MESSAGES: &[&str] = &[
    r"{{-'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>'+'\n'}}",
    r"{{-'<|im_start|>'+message.role+'\n'+message.content+'<|im_end|>\n'}}",
    r"{{-'<|im_start|>'+message.role+'\n'+content+'<|im_end|>'+'\n'}}",
    r"{{-'<|im_start|>'+message.role+'\n'+content+'<|im_end|>\n'}}",
];

/// Where a template begins the answer.
const BEGIN_OF_ANSWER: &str = "{%-ifadd_generation_prompt%}";

/// How a template begins the answer, after [`BEGIN_OF_ANSWER`].
const ANSWER: &str = concat!(
    r"{{-'<|im_start|>assistant\n'}}",
    "{%-ifenable_thinkingisdefinedandenable_thinkingisfalse%}",
    r"{{-'<think>\n\n</think>\n\n'}}",
    "{%-endif%}{%-endif%}"
);

/// How a message of the system begins. A family that writes one without being asked goes on with its words.
const SYSTEM: &str = r"<|im_start|>system\n";

/// Whether the language model is asked to think before it answers, which its hidden states reflect.
///
/// transformers calls this `enable_thinking`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thinking {
    /// The answer begins with thoughts, as Z-Image was trained.
    Enabled,
    /// The answer begins with an empty block of thoughts, as FLUX.2 klein was trained.
    Disabled,
}

/// Writes `prompt` as the only message of the user, and the begin of the answer.
pub(super) fn chat(prompt: &str, thinking: Thinking) -> String {
    let thoughts = match thinking {
        Thinking::Enabled => "",
        Thinking::Disabled => "<think>\n\n</think>\n\n",
    };
    format!("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{thoughts}")
}

/// Checks that the template of a tokenizer's directory writes what [`chat`] writes.
///
/// `config` is the content of its `tokenizer_config.json`.
///
/// # Errors
///
/// [`ModelError::Tokenizer`] if there is no template, or if it is not of Qwen3's family.
pub(super) fn check(dir: &Path, config: &Value) -> Result<(), ModelError> {
    let file = dir.join(FILE);
    let (path, template) = match read_text(&file, SizeLimit::SETTINGS) {
        Ok(text) => (file, text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let path = dir.join("tokenizer_config.json");
            let text = in_config(&config["chat_template"]).ok_or_else(|| {
                refuse(&path, format!("it has no `chat_template`, and there is no {FILE}"))
            })?;
            (path, text.to_owned())
        }
        Err(e) => return Err(ModelError::io(&file, "a chat template", e)),
    };
    check_template(&template).map_err(|reason| refuse(&path, reason))
}

/// The template in a config: a text, or the one named `default` of a list.
fn in_config(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Array(items) => {
            items.iter().find(|item| item["name"] == "default")?["template"].as_str()
        }
        _ => None,
    }
}

fn check_template(template: &str) -> Result<(), String> {
    let text: String = template.chars().filter(|c| !c.is_whitespace()).collect();
    let text = text.replace('"', "'");
    let other = |what: &str| {
        Err(format!(
            "its chat template is not that of Qwen3: {what}; use the tokenizer of the base model"
        ))
    };
    if !MESSAGES.iter().any(|message| text.contains(message)) {
        return other("it writes the user's message in another form");
    }
    match text.rsplit_once(BEGIN_OF_ANSWER) {
        Some((_, ANSWER)) => {}
        Some(_) => return other("it begins the answer in another form"),
        None => return other("it does not read `add_generation_prompt`"),
    }
    let mut systems = text.match_indices(SYSTEM).map(|(at, _)| &text[at + SYSTEM.len()..]);
    match systems.all(|rest| rest.starts_with('\'')) {
        true => Ok(()),
        false => other("it adds a message of the system"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template with the parts of Qwen3's: tools, a message of the system, and all roles.
    const QWEN3: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

    #[test]
    fn templates_of_other_families_are_refused() {
        assert_eq!(check_template(QWEN3), Ok(()));
        let double = QWEN3.replace('\'', "\"").replace("message.content", "content") + "\n";
        assert_eq!(check_template(&double), Ok(()));
        for (from, to, named) in [
            // Qwen2.5 adds a message of the system.
            (
                r"{{- '<|im_start|>system\n' }}",
                r"{{- '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}",
                "of the system",
            ),
            // Qwen3's models that always or never think.
            (
                r"{{- '<|im_start|>assistant\n' }}",
                r"{{- '<|im_start|>assistant\n<think>\n' }}",
                "begins the answer",
            ),
            (
                "{%- if enable_thinking is defined and enable_thinking is false %}",
                "",
                "begins the answer",
            ),
            // Thoughts that are opened unless they are disabled, as in Qwen3.5.
            (
                "{%- endif %}\n{%- endif %}",
                "{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}",
                "answer",
            ),
            ("+ message.content +", "+ message.content|trim +", "user's message"),
            ("add_generation_prompt", "generate", "add_generation_prompt"),
        ] {
            let changed = QWEN3.replace(from, to);
            assert_ne!(changed, QWEN3, "{named}");
            let error = check_template(&changed).expect_err(named);
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_template_is_found_in_a_config() {
        let list = serde_json::json!([
            {"name": "tools", "template": "a"}, {"name": "default", "template": "b"},
        ]);
        assert_eq!(in_config(&list), Some("b"));
        assert_eq!(in_config(&serde_json::json!("c")), Some("c"));
        assert_eq!(in_config(&serde_json::json!([{"name": "tools"}])), None);
        assert_eq!(in_config(&Value::Null), None);
    }
}
