//! Chat templates and tokenizers that would take all memory, all time, or the stack: each is refused
//! in one sentence, within seconds.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use mlxgk_tokenizer_bridge::{ChatTemplate, ErrorKind, Files, Message, RenderOptions, Tokenizer};
use serde_json::{Value, json};

fn render(source: &str) -> Result<String, String> {
    let messages = [Message::new("user", "Hi"), Message::new("assistant", "Ho")];
    let template = ChatTemplate::new(source).map_err(|e| e.to_string())?;
    template.render(&messages, &RenderOptions::default()).map_err(|e| {
        assert_eq!(e.kind(), ErrorKind::Template, "{e}");
        e.to_string()
    })
}

#[allow(clippy::expect_used, reason = "the helper of a test may panic like the test")]
fn refused(source: &str) -> String {
    let shown: String = source.chars().take(100).collect();
    let error = render(source).map(|it| it.len()).expect_err(&shown);
    assert!(error.chars().count() <= 400, "{shown}: {error}");
    assert!(!error.contains('\n') && !error.contains("__mlxgk"), "{shown}: {error}");
    error
}

/// Doubles a text 40 times in a namespace.
fn doubled(expression: &str) -> String {
    format!(
        "{{% set ns = namespace(s='x', l=[1]) %}}{{% for i in range(40) %}}\
         {{% set ns.s = {expression} %}}{{% endfor %}}{{{{ ns.s }}}}"
    )
}

#[test]
fn templates_that_make_too_much() {
    for expression in [
        "ns.s ~ ns.s",
        "ns.s + ns.s",
        "ns.s * 2",
        "(ns.s ~ '') ~ ('' ~ ns.s)",
        "[ns.s, ns.s] | join",
        "ns.s | replace('x', 'xx')",
        "ns.s.replace('x', 'xx')",
        "ns.s.join([ns.s, ns.s])",
        "'%s%s' | format(ns.s, ns.s)",
        "'{}{}'.format(ns.s, ns.s)",
        "[ns.s, ns.s] | string",
    ] {
        refused(&doubled(expression));
    }
    let list = "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}\
                {% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l | length }}";
    refused(list);
    refused(&list.replace("ns.l + ns.l", "ns.l * 2"));
    // A list of itself, twice, is small and prints without end.
    let shared = "{% set ns = namespace(l=[1]) %}{% for i in range(40) %}\
                  {% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}";
    refused(shared);
    refused(&shared.replace("{{ ns.l }}", "{{ ns.l | tojson }}"));
    for source in [
        "{{ 'x' * 1000000000 }}",
        "{{ 1000000000 * 'x' }}",
        "{{ [1] * 1000000000 }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '%*d' | format(1000000000, 1) }}",
        "{{ '%.1000000000f' | format(1.0) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ 'x'.center(1000000000) }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ 'x'.zfill(10000000000) }}",
        "{{ 'x' | indent(1000000000) }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{{ messages | batch(1000000000, 'x') | list }}",
        "{{ messages | slice(1000000000) | list }}",
        "{{ range(1000000000) | list | length }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro m(s) %}{{ m(s ~ s) }}{% endmacro %}{{ m('x') }}",
        "{% macro m(s) %}{{ m(s) }}{{ m(s) }}{% endmacro %}{{ m('x') }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set other = namespace(a=ns) %}{% set ns.a = [other] %}{{ ns }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}",
        "{% set ns = namespace(l=range(90000)|list) %}{% for i in range(1000) %}{{ ns.l | sort | first }}{% endfor %}",
    ] {
        refused(source);
    }
    refused(&format!("{{{{ strftime_now('{}') }}}}", "%Y".repeat(100_000)));
    let raw = "x".repeat(100_000);
    refused(&format!("{{% for i in range(90000) %}}{raw}{{% endfor %}}"));
    refused(&format!(
        "{{% set s %}}{{% for i in range(90000) %}}{raw}{{% endfor %}}{{% endset %}}"
    ));
    let spaces = " ".repeat(100_000);
    refused(&format!("{{% for i in range(90000) %}}{spaces}{{% endfor %}}"));
}

/// One instruction may look at a long value, and be run again and again.
#[test]
fn templates_that_look_at_much() {
    let lists = "{% set l = range(50000) | list %}{% set m = range(50000) | list %}";
    let texts = "{% set s = 'a ' * 5000000 %}{% set t = 'a ' * 5000000 %}";
    let loops = |values: &str, looks: &str| {
        format!("{values}{{% for i in range(90000) %}}{{{{ {looks} }}}}{{% endfor %}}")
    };
    for looks in [
        "l | reverse | first",
        "l[::-1] | length",
        "(l)[::-1] | length",
        "l | sum",
        "l.index(49999)",
        "l.count(3)",
        "l is eq m",
        "l == m",
        "50001 in l",
        "50001 is in(l)",
    ] {
        refused(&loops(lists, looks));
    }
    for looks in [
        "s | length",
        "s | upper | length",
        "s | trim | length",
        "s[1:] | length",
        "s.count('b')",
        "s.find('b')",
        "s | int",
        "s | e | length",
        "s | safe | length",
        "s is lower",
        "s.split('b') | length",
        "s.partition('b') | length",
        "s == t",
        "i == s == t",
        "'b' not in s",
        "[s][0] == t",
        "{s: 1} | length",
    ] {
        refused(&loops(texts, looks));
    }
}

#[test]
fn sources_that_nest_too_deep() {
    let deep = |open: &str, inner: &str, close: &str| {
        format!("{}{inner}{}", open.repeat(20_000), close.repeat(20_000))
    };
    for source in [
        format!("{{{{ {} }}}}", deep("(", "1", ")")),
        format!("{{{{ {} }}}}", deep("[", "1", "]")),
        format!("{{{{ {} }}}}", deep("-", "1", "")),
        format!("{{{{ {} }}}}", deep("not ", "1", "")),
        format!("{{{{ {} }}}}", deep("1 ~ ", "1", "")),
        format!("{{{{ {} }}}}", deep("1 if 1 else ", "1", "")),
        format!("{{{{ {} }}}}", deep("1 ** ", "1", "")),
        format!("{{{{ x{} }}}}", ".a".repeat(20_000)),
        format!("{{{{ x{} }}}}", "|trim".repeat(20_000)),
        deep("{% if 1 %}", "", "{% endif %}")[..200_000].to_owned(),
        deep("{% for x in y %}", "", "")[..200_000].to_owned(),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(15_000)),
        "x".repeat(1 << 20),
    ] {
        refused(&source);
    }
}

/// What a chat template may well do is not in the way of the limits.
#[test]
fn long_conversations_are_rendered() {
    let template = ChatTemplate::new(
        "{% set ns = namespace(text='', calls=[]) %}\
         {% for m in messages %}{% set ns.text = ns.text + m.role ~ ': ' + m.content ~ '\n' %}\
         {% set ns.calls = ns.calls + [m.role] %}{% endfor %}{{ ns.text }}{{ ns.calls | length }}",
    )
    .unwrap();
    let messages: Vec<Message> =
        (0..200).map(|at| Message::new("user", format!("{at} ").repeat(100))).collect();
    let text = template.render(&messages, &RenderOptions::default()).unwrap();
    assert!(text.starts_with("user: 0 0 ") && text.ends_with("\n200"), "{}", text.len());

    // One message of a megabyte is written as it is.
    let long = "word ".repeat(200_000);
    let messages = [Message::new("user", long.clone())];
    let template = ChatTemplate::new("{{ '<' + messages[0].content | trim + '>' }}").unwrap();
    let text = template.render(&messages, &RenderOptions::default()).unwrap();
    assert_eq!(text.len(), long.len() + 1);
}

/// Operators and loops are Python's.
#[test]
fn operators_are_those_of_python() {
    for (source, expected) in [
        ("{{ 'a' ~ 1.0 ~ 1e20 ~ none ~ [1, 'x'] }}", "a1.01e+20None[1, 'x']"),
        ("{{ ('a' ~ 'b') ~ ('c' ~ ('d')) }}", "abcd"),
        ("{{ (messages)[1:][0]['content'][::-1] | upper | lower }}", "oh"),
        (
            "{{ (messages[0].role == messages[(1)].role, 'o' in (messages[1].content)) }}",
            "(False, True)",
        ),
        ("{{ 'H' not in messages[0].content or messages is eq(messages) }}", "True"),
        ("{{ 1 + 2 * 3 + (4 * (5 + 1)) }}", "31"),
        ("{{ true + 1 }} {{ 1 + 0.5 }} {{ 2 * 1.5 }}", "2 1.5 3.0"),
        ("{{ 'ab' * 2 + 3 * 'c' }}", "ababccc"),
        ("{{ [1] + [2, 3] }} {{ (1,) + (2,) }} {{ [0] * 3 }}", "[1, 2, 3] (1, 2) [0, 0, 0]"),
        ("{{ '<b>' | safe + '<' }}", "<b>&lt;"),
        ("{{ '<' + '<b>' | safe }}", "&lt;<b>"),
        ("{{ ['a\u{a0}b'] }}{{ {'k': '\u{200b}'} ~ '' }}", "['a\\xa0b']{'k': '\\u200b'}"),
        ("{% for x in messages if x.role == 'user' %}{{ x.content + '!' }}{% endfor %}", "Hi!"),
        ("{% for x in (messages[1:] + [messages[0]]) %}{{ x.content }}{% endfor %}", "HoHi"),
        ("{{ '%s-%d' | format('a', 7) }} {{ '{:>4}'.format('x') }}", "a-7    x"),
        ("{{ messages | map(attribute='role') | list | tojson }}", "[\"user\", \"assistant\"]"),
        ("{{ 'yes' if messages | selectattr('role', 'equalto', 'x') else 'no' }}", "yes"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
    for (source, what) in [
        ("{% for x in none %}{% endfor %}", "'NoneType' object is not iterable"),
        ("{% for x in messages[0].tool_calls or none %}{% endfor %}", "'NoneType' object"),
        ("{{ messages | map(attribute='role') | tojson }}", "generator is not JSON serializable"),
        ("{{ 'a' + 1 }}", "+"),
        ("\n\n{{ [1] + 'a' }}", "line 3"),
    ] {
        assert!(refused(source).contains(what), "{source}: {}", refused(source));
    }
}

#[allow(clippy::needless_pass_by_value, reason = "each value is made for one call")]
fn tokenizer(changes: Value) -> Result<Tokenizer, String> {
    let mut json = json!({
        "model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1}},
        "pre_tokenizer": {"type": "Whitespace"},
    });
    for (field, value) in changes.as_object().unwrap() {
        json[field] = value.clone();
    }
    let files = Files { tokenizer: Some(json.to_string().into_bytes().into()), ..Files::default() };
    Tokenizer::from_files(&files).map_err(|e| {
        assert_eq!(e.kind(), ErrorKind::File);
        e.to_string()
    })
}

#[test]
fn tokenizers_that_would_hang_or_panic() {
    let replace = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
    let doubling = vec![replace("a", "aa"); 60];
    let charsmap = |map: &str| json!({"type": "Precompiled", "precompiled_charsmap": map});
    let prepended = vec![json!({"type": "Prepend", "prepend": "x".repeat(100)}); 60];
    let nested =
        (0..40).fold(replace("a", "b"), |it, _| json!({"type": "Sequence", "normalizers": [it]}));
    for (changes, entry) in [
        (json!({"normalizer": replace("", "x")}), "`normalizer.pattern`"),
        (
            json!({"normalizer": {"type": "Sequence", "normalizers": doubling}}),
            "`normalizer.normalizers[9]`",
        ),
        (json!({"normalizer": nested}), "`normalizer"),
        (json!({"decoder": {"type": "Sequence", "decoders": doubling}}), "`decoder.decoders[9]`"),
        (json!({"decoder": replace("", "x")}), "`decoder.pattern`"),
        (
            json!({"pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false}}),
            "`pre_tokenizer.pattern`",
        ),
        (json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}}), "`pre_tokenizer.length`"),
        (
            json!({"post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [], "special_tokens": {}}}),
            "`post_processor.single[0]`",
        ),
        (
            json!({"post_processor": {"type": "TemplateProcessing",
                "single": vec![json!({"SpecialToken": {"id": "<s>", "type_id": 0}}); 100], "pair": [],
                "special_tokens": {"<s>": {"id": "<s>", "ids": vec![0; 100], "tokens": vec!["a"; 100]}}}}),
            "`post_processor.single`",
        ),
        (json!({"normalizer": charsmap("////////AAAA")}), "a trie of 4294967295 bytes in 9"),
        (json!({"normalizer": charsmap("AA")}), "is not base64"),
        (
            json!({"normalizer": {"type": "Sequence", "normalizers": prepended}}),
            "`normalizer.normalizers[40]`",
        ),
        (
            json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["", -1.0]]}}),
            "`model.vocab`",
        ),
        (
            json!({"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 4_000_000_000_u32}}}),
            "4000000000",
        ),
    ] {
        let error = tokenizer(changes.clone()).map(|_| changes).unwrap_err();
        assert!(error.contains(entry), "{entry}: {error}");
        assert!(error.chars().count() <= 400 && !error.contains('\n'), "{error}");
    }
}
