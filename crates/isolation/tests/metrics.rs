//! Measures of texts against scikit-learn and rouge_score, and against naive counting.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may panic like the test")]

use std::{collections::HashSet, fs, path::Path};

use mlxgk_isolation::{
    metrics::{TfIdf, jaccard, leakage, novel_trigrams, rouge_l, words},
    paired,
};
use mlxgk_torch::SplitMix64;
use serde_json::Value;

fn close(a: f64, b: &Value, what: &str) {
    let b = b.as_f64().unwrap();
    assert!((a - b).abs() < 1e-8, "{what}: {a}, not {b}");
}

#[test]
fn texts_are_measured_as_scikit_learn_and_rouge_score_do() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/metrics/texts.json");
    let golden: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 40);
    let mut kinds = HashSet::new();
    for case in cases {
        let texts: Vec<&str> =
            case["texts"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        let vectors = TfIdf::new(&texts);
        for (i, a) in texts.iter().enumerate() {
            for (j, b) in texts.iter().enumerate() {
                let what = format!("{a:?} and {b:?}");
                close(vectors.cosine(i, j), &case["cosine"][i][j], &what);
                let (found, golden) = (rouge_l(a, b), &case["rouge_l"][i][j]);
                for (at, it) in [found.precision, found.recall, found.f].into_iter().enumerate() {
                    close(it, &golden[at], &what);
                }
                kinds.insert((found.recall * 10.0) as u8);
            }
            let weights = case["weights"][i].as_object().unwrap();
            let weight = |word: &str| weights[word].as_f64().unwrap();
            let keywords = vectors.keywords(i, usize::MAX);
            assert!(keywords.is_sorted_by(|a, b| weight(a) >= weight(b)), "{keywords:?}");
            let left_out: HashSet<&str> = weights.keys().map(String::as_str).collect();
            let left_out: Vec<_> =
                left_out.difference(&keywords.iter().copied().collect()).copied().collect();
            assert!(left_out.iter().all(|it| it.len() < 8), "{left_out:?}");
        }
    }
    // From nothing in common to everything.
    assert!(kinds.len() > 5, "{kinds:?}");
}

fn random_text(rng: &mut SplitMix64, len: u64) -> String {
    let word = |rng: &mut SplitMix64| {
        ["fox", "Den", "river", "in", "The", "snow"][(rng.next_u64() % 6) as usize]
    };
    let count = rng.next_u64() % len;
    (0..count)
        .map(|_| word(rng))
        .collect::<Vec<_>>()
        .join([" ", ", ", "-"][(rng.next_u64() % 3) as usize])
}

#[test]
fn measures_are_what_naive_counting_gives() {
    let mut rng = SplitMix64::new(5);
    for _ in 0..300 {
        let (a, b) = (random_text(&mut rng, 9), random_text(&mut rng, 20));
        let (x, y) = (words(&a), words(&b));
        let unique = |it: &[String]| {
            let mut found: Vec<String> = Vec::new();
            it.iter().for_each(|word| {
                if !found.contains(word) {
                    found.push(word.clone())
                }
            });
            found
        };
        let shared = unique(&x).iter().filter(|it| y.contains(it)).count() as f64;
        let all = unique(&x).len() as f64 + unique(&y).len() as f64 - shared;
        let expected = if all == 0.0 { 0.0 } else { shared / all };
        assert_eq!(jaccard(&a, &b), expected, "{a:?}, {b:?}");

        let padded = |it: &[String]| format!(" {} ", it.join(" "));
        let terms: Vec<String> =
            (0..4).map(|_| random_text(&mut rng, 3)).filter(|it| !it.is_empty()).collect();
        let found = terms.iter().filter(|it| padded(&y).contains(&padded(&words(it)))).count();
        let expected = (!terms.is_empty()).then(|| found as f64 / terms.len() as f64);
        assert_eq!(leakage(&terms, &b), expected, "{terms:?}, {b:?}");

        let mut trigrams: Vec<String> = y.windows(3).map(padded).collect();
        trigrams.sort();
        trigrams.dedup();
        let novel = trigrams.iter().filter(|it| !padded(&x).contains(*it)).count();
        let expected = (!trigrams.is_empty()).then(|| novel as f64 / trigrams.len() as f64);
        assert_eq!(novel_trigrams(&b, &[&a]), expected, "{a:?}, {b:?}");
    }
}

#[test]
fn pairs_are_compared_as_by_hand() {
    // Differences 1, 1, -1, 3: mean 1, standard deviation sqrt(8 / 3).
    let found = paired(&[2.0, 3.0, 4.0, 8.0], &[1.0, 2.0, 5.0, 5.0], 1).unwrap();
    assert_eq!((found.n, found.mean_difference), (4, 1.0));
    assert!((found.effect_size.unwrap() - (3.0_f64 / 8.0).sqrt()).abs() < 1e-12);
    // Of the sixteen sums of ±1 ±1 ±1 ±3, these are 4 or more from 0: ±6 once each, ±4 three times each.
    assert_eq!(found.p, 8.0 / 16.0);
    assert!(found.interval.0 >= -1.0 && found.interval.1 <= 3.0);
    assert!(found.interval.0 < 1.0 && found.interval.1 > 1.0);

    let same = paired(&[0.5; 5], &[0.25; 5], 1).unwrap();
    assert_eq!((same.interval, same.effect_size, same.p), ((0.25, 0.25), None, 2.0 / 32.0));
    let none = paired(&[1.0, 2.0], &[1.0, 2.0], 1).unwrap();
    assert_eq!((none.p, none.effect_size), (1.0, None));
    assert_eq!(paired(&[1.0], &[0.0], 1), None);

    // Beyond twelve pairs signs are drawn. All of twenty agree: only chance hits one in 2^19.
    let (a, b): (Vec<f64>, Vec<f64>) = (0..20).map(|it| (f64::from(it) + 1.0, 0.0)).unzip();
    let drawn = paired(&a, &b, 3).unwrap();
    assert!(drawn.p < 0.001, "{drawn:?}");
    assert_eq!(paired(&a, &b, 3), Some(drawn));
    // Sixteen differences without a direction: half and half.
    let signs: Vec<f64> = (0..16).map(|it| if it % 2 == 0 { 1.0 } else { -1.0 }).collect();
    assert_eq!(paired(&signs, &[0.0; 16], 3).unwrap().p, 1.0);
}
