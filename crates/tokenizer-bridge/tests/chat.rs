//! Which template is used, what goes into it, and what is said when it cannot be.

use std::fs;

use mlxgk_tokenizer_bridge::{ChatTemplate, ErrorKind, Files, Message, RenderOptions};
use serde_json::{Value, json};

fn from_config(config: &Value) -> Result<ChatTemplate, mlxgk_tokenizer_bridge::Error> {
    let config = Some(config.to_string().into_bytes().into());
    ChatTemplate::from_files(&Files { tokenizer_config: config, ..Files::default() })
}

/// The text of one user message, or the error's kind and sentence.
fn render(template: &ChatTemplate, options: &RenderOptions) -> Result<String, (ErrorKind, String)> {
    let rendered = template.render(&[Message::new("user", "hi")], options);
    rendered.map_err(|error| (error.kind(), error.to_string()))
}

fn render_source(source: &str) -> Result<String, (ErrorKind, String)> {
    let template = ChatTemplate::new(source).map_err(|error| (error.kind(), error.to_string()))?;
    render(&template, &RenderOptions::default())
}

fn template_error(sentence: &str) -> Result<String, (ErrorKind, String)> {
    Err((ErrorKind::Template, sentence.to_owned()))
}

#[test]
fn files_go_before_the_config() {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"chat_template": "config", "bos_token": "<s>"});
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let load = || ChatTemplate::from_files(&Files::from_folder(folder.path()).unwrap()).unwrap();
    assert_eq!(render(&load(), &RenderOptions::default()).unwrap(), "config");

    fs::write(folder.path().join("chat_template.jinja"), "{{ bos_token }}file").unwrap();
    assert_eq!(render(&load(), &RenderOptions::default()).unwrap(), "<s>file");

    fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    fs::write(folder.path().join("additional_chat_templates/tool_use.jinja"), "tools").unwrap();
    fs::write(folder.path().join("additional_chat_templates/rag.jinja"), "rag").unwrap();
    let template = load();
    assert_eq!(template.names().collect::<Vec<_>>(), ["default", "rag", "tool_use"]);
    let with_tools = RenderOptions { tools: Some(Vec::new()), ..RenderOptions::default() };
    assert_eq!(render(&template, &with_tools).unwrap(), "tools");
    let named = RenderOptions { template: Some("rag".to_owned()), ..with_tools };
    assert_eq!(render(&template, &named).unwrap(), "rag");
}

#[test]
fn a_template_that_is_not_there() {
    let error = from_config(&json!({"eos_token": "</s>"})).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::MissingTemplate);
    let expected = "the model has no chat template, neither in chat_template.jinja nor in tokenizer_config.json";
    assert_eq!(error.to_string(), expected);

    let list = json!([{"name": "tool_use", "template": "t"}, {"name": "rag", "template": "r"}]);
    let template = from_config(&json!({"chat_template": list})).unwrap();
    let expected = "there is no chat template `default`, only `tool_use`, `rag`";
    let missing = Err((ErrorKind::MissingTemplate, expected.to_owned()));
    assert_eq!(render(&template, &RenderOptions::default()), missing);

    for wrong in [json!(5), json!([]), json!([{"name": "x"}]), json!({"default": 1})] {
        let error = from_config(&json!({"chat_template": wrong})).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::File);
        let expected = "tokenizer_config.json: `chat_template` is neither a text nor a list of `name` and `template`";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn errors_name_the_template_and_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat_template.jinja");
    fs::write(&path, "{% for m in messages %}\n{{ m.content }}\n{% endif %}").unwrap();
    let error = ChatTemplate::from_files(&Files::from_folder(folder.path()).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Template);
    let place = format!("{}, line 3: syntax error: ", path.display());
    assert!(error.to_string().starts_with(&place), "{error}");

    let error = render_source("a\n{{ nothing.at.all }}").unwrap_err();
    assert!(error.1.starts_with("chat template, line 2: "), "{}", error.1);
    let sentence = "chat template, line 1: filter nosuch is unknown";
    assert_eq!(render_source("{{ 1 | nosuch }}"), template_error(sentence));
    let sentence = "chat template, line 2: string has no method named encode";
    assert_eq!(render_source("\n{{ 'a'.encode() }}"), template_error(sentence));
    let sentence = "chat template, line 1: tried to use % operator on unsupported types string and \
        number; a template here formats text with the `format` filter";
    assert_eq!(render_source("{{ '%d' % 5 }}"), template_error(sentence));
    let sentence = "chat template, line 1: strftime_now cannot write `%!`";
    assert!(render_source("{{ strftime_now('%!') }}").unwrap_err().1.starts_with(sentence));
}

#[test]
fn roundings_that_cannot_be() {
    assert_eq!(render_source("{{ 2.55|round(1, 'floor') }}").unwrap(), "2.5");
    for (source, expected) in [
        ("{{ 2.5|round(4294967296) }}", "2.5"),
        ("{{ 2.5|round(400) }}", "2.5"),
        ("{{ -2.5|round(-4294967296) }}", "-0.0"),
        ("{{ 25|round(-400) }}", "0"),
    ] {
        assert_eq!(render_source(source).unwrap(), expected, "{source}");
    }
    let sentence = "chat template, line 1: round: precision is out of range";
    let source = "{{ 2.5|round(4294967296, 'floor') }}";
    assert_eq!(render_source(source), template_error(sentence));
    for method in ["none", "5", "['ceil']", "'up'"] {
        let sentence = "chat template, line 1: round: method must be common, ceil or floor";
        for source in [
            format!("{{{{ 3|round(0, {method}) }}}}"),
            format!("{{{{ 2.5|round(method={method}) }}}}"),
        ] {
            assert_eq!(render_source(&source), template_error(sentence), "{source}");
        }
    }
}

#[test]
fn a_refusal_is_told_in_the_template_s_words() {
    let refused = Err((
        ErrorKind::Refused,
        "the chat template refuses the conversation: No system prompt!".to_owned(),
    ));
    assert_eq!(render_source("{{ raise_exception('No system prompt!') }}"), refused);
    let in_a_macro =
        "{% macro m() %}{{ raise_exception('No system prompt!') }}{% endmacro %}{{ m() }}";
    assert_eq!(render_source(in_a_macro), refused);
}

#[test]
fn a_template_that_would_never_end() {
    let endless = "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}";
    assert_eq!(render_source(endless).unwrap_err().0, ErrorKind::Template);
    assert_eq!(render_source("{{ range(10000000000)|list }}").unwrap_err().0, ErrorKind::Template);
    for huge in
        ["'a'.ljust(10000000000)", "[1]|tojson(indent=10000000000)", "'a'|indent(10000000000)"]
    {
        assert_eq!(
            render_source(&format!("{{{{ {huge} }}}}")).unwrap_err().0,
            ErrorKind::Template,
            "{huge}"
        );
    }
}

#[test]
fn options_that_cannot_be() {
    let template = ChatTemplate::new("x").unwrap();
    let error = template.render(&[], &RenderOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conversation);
    let extra = [("tools".to_owned(), json!([]))].into_iter().collect();
    let options = RenderOptions { extra, ..RenderOptions::default() };
    let sentence = "the extra variable `tools` is an option of its own".to_owned();
    assert_eq!(render(&template, &options), Err((ErrorKind::Conversation, sentence)));
}

#[test]
fn variables_shadow_the_special_tokens() {
    let template =
        from_config(&json!({"chat_template": "{{ bos_token }}", "bos_token": "<s>"})).unwrap();
    let extra = [("bos_token".to_owned(), json!(""))].into_iter().collect();
    assert_eq!(
        render(&template, &RenderOptions { extra, ..RenderOptions::default() }).unwrap(),
        ""
    );
}

/// As in Jinja, a word and a text need no space between them.
#[test]
fn texts_right_after_words() {
    for spaced in [
        "{{ true and 'a' ~ 'b' }}",
        "{% for x in 'ab' %}{{ x }},{% endfor %}",
        "{{ 1 if 'a' == 'b' else 'b' * 2 }}",
        "{{ not 'a' ~ 'b' }}",
        "{{ true and 'a' 'b' }}",
    ] {
        let close = spaced.replace(" '", "'");
        assert_eq!(render_source(&close).unwrap(), render_source(spaced).unwrap(), "{close}");
    }
}

#[test]
fn every_newline_is_one() {
    assert_eq!(render_source("a\r\nb\rc\r\n{% if true %}\r\nd{% endif %}").unwrap(), "a\nb\nc\nd");
}

#[test]
fn templates_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<ChatTemplate>();
    shared::<mlxgk_tokenizer_bridge::Tokenizer>();
}
