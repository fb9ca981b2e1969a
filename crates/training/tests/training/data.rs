//! What of a row is learned, and in what order rows come.

use std::path::Path;

use mlxgk_tokenizer_bridge::{ChatTemplate, Files, Tokenizer};
use mlxgk_training::{Encoder, Example, IGNORE_INDEX, Order, Row, pack};

/// Reads rows with the tokenizer and template of the bundled model.
fn read(rows: &[&str], check: &dyn Fn(&Tokenizer, &[Row])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mlx-genkit/bundled");
    let files = Files::from_folder(&folder).unwrap();
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    let template = ChatTemplate::from_files(&files).unwrap();
    let encoder =
        Encoder { tokenizer: &tokenizer, template: Some(&template), ends: &[2, 0], context: 1024 };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, rows.join("\n")).unwrap();
    check(&tokenizer, &encoder.read(&path).unwrap());
}

fn learned(tokenizer: &Tokenizer, example: &Example) -> String {
    assert_eq!(example.tokens.len(), example.labels.len());
    let pairs = example.tokens.iter().zip(&example.labels);
    let own = pairs.filter(|(_, label)| **label != IGNORE_INDEX);
    let ids: Vec<u32> = own
        .map(|(token, label)| {
            assert_eq!(*token as i32, *label);
            *token
        })
        .collect();
    tokenizer.decode(&ids, false).unwrap()
}

fn example(row: &Row) -> &Example {
    match row {
        Row::Example(example) => example,
        other => panic!("{other:?}"),
    }
}

#[test]
fn completions_and_answers_alone_are_learned() {
    let rows = [
        r#"{"text": "The harbour is quiet."}"#,
        r#"{"prompt": "Once upon", "completion": " a time"}"#,
        r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy!"}, {"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine."}]}"#,
    ];
    read(&rows, &|tokenizer, rows| {
        let learned = |at: usize| learned(tokenizer, example(&rows[at]));
        assert_eq!(learned(0), "The harbour is quiet.<|im_end|>");
        assert_eq!(learned(1), " a time<|im_end|>");
        assert_eq!(learned(2), "Ahoy!<|im_end|>Fine.<|im_end|>");
        let whole = tokenizer.decode(&example(&rows[2]).tokens, false).unwrap();
        assert!(whole.starts_with("<|im_start|>system\nBe brief.<|im_end|>"), "{whole}");
    });
    let rows = [
        r#"{"prompt": "Rain is", "chosen": " wet", "rejected": " dry as dust"}"#,
        r#"{"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Rain?"}], "chosen": [{"role": "assistant", "content": "Wet."}], "rejected": [{"role": "assistant", "content": "Dry."}]}"#,
    ];
    read(&rows, &|tokenizer, rows| {
        let sides: Vec<[String; 2]> = rows
            .iter()
            .map(|row| match row {
                Row::Preference { chosen, rejected } => {
                    [chosen, rejected].map(|it| learned(tokenizer, it))
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sides[0], [" wet<|im_end|>", " dry as dust<|im_end|>"]);
        // Of the prompt's own answer nothing.
        assert_eq!(sides[1], ["Wet.<|im_end|>", "Dry.<|im_end|>"]);
    });
}

#[test]
fn short_rows_are_joined_without_learning_across() {
    let rows = [vec![1, 2, 3], vec![4, 5], vec![6, 7, 8, 9], vec![10]].map(Example::text);
    let packed = pack(&rows, 5);
    let tokens: Vec<&[u32]> = packed.iter().map(|it| it.tokens.as_slice()).collect();
    assert_eq!(tokens, [&[1, 2, 3, 4, 5][..], &[6, 7, 8, 9, 10]]);
    assert_eq!(packed[0].labels, [IGNORE_INDEX, 2, 3, IGNORE_INDEX, 5]);
    assert_eq!(packed[1].labels, [IGNORE_INDEX, 7, 8, 9, IGNORE_INDEX]);
}

#[test]
fn every_epoch_has_every_row_once_and_its_own_order() {
    let lengths: Vec<usize> = (0..257).map(|it| 1 + it * 31 % 97).collect();
    let order = Order::new(lengths.clone(), 4, 11);
    let epochs = [0, 1].map(|epoch| order.epoch(epoch));
    assert_ne!(epochs[0], epochs[1]);
    assert_ne!(epochs[0], Order::new(lengths.clone(), 4, 12).epoch(0));
    for batches in &epochs {
        assert_eq!(batches.len(), order.batches());
        let mut rows: Vec<usize> = batches.concat();
        rows.sort_unstable();
        assert!(rows.into_iter().eq(0..257));
        // Rows of like lengths stand together: little is padded.
        let padded: usize = batches
            .iter()
            .map(|it| it.len() * it.iter().map(|&row| lengths[row]).max().unwrap())
            .sum();
        let own: usize = lengths.iter().sum();
        assert!(padded < own * 11 / 10, "{padded} for {own}");
    }
}
