//! The order in which torch leaves equal values when it sorts and selects.
//!
//! `torch.sort` and `torch.topk` promise no order among equals, and it shows: a top-p that cuts
//! through equal scores keeps those that happen to stand behind the cut. On the CPU torch 2.15 calls
//! `std::sort`, `std::nth_element` and `std::partial_sort`, so what happens is fixed by libstdc++:
//! quicksort around the median of three, a heap where that goes too deep, insertion at the end. The
//! same steps in the same order are repeated here.

/// Slices up to this length are left to the insertion at the end.
const SHORT: usize = 16;

/// Sorts as `torch.sort` does on the CPU: `precedes` says whether the first of two items belongs
/// before the second, and where it says so of neither the order is torch's.
///
/// ```
/// // torch.sort(torch.ones(20)).indices
/// let mut places: Vec<(f32, u32)> = (0..20).map(|it| (1.0, it)).collect();
/// mlxgk_torch::sort(&mut places, |a, b| a.0 < b.0);
/// let places: Vec<u32> = places.into_iter().map(|it| it.1).collect();
/// assert_eq!(
///     places,
///     [10, 19, 18, 17, 16, 15, 14, 13, 12, 11, 0, 9, 8, 7, 6, 5, 4, 3, 2, 1]
/// );
/// ```
pub fn sort<T: Copy>(items: &mut [T], precedes: impl Fn(&T, &T) -> bool + Copy) {
    sort_roughly(items, depth_of(items.len()), precedes);
    insert_each(items, precedes);
}

/// Moves to the front the `count` items that belong there, in their order, as `torch.topk` does where it
/// is asked for more than one in 64 of them. `count` is from 1 to the number of items.
pub(crate) fn select_first<T: Copy>(
    items: &mut [T],
    count: usize,
    precedes: impl Fn(&T, &T) -> bool + Copy,
) {
    select(items, count - 1, precedes);
    sort(&mut items[..count - 1], precedes);
}

/// How often a slice may be divided before a heap takes over.
fn depth_of(len: usize) -> u32 {
    2 * len.checked_ilog2().unwrap_or(0)
}

/// `std::__introsort_loop`.
fn sort_roughly<T: Copy>(
    mut items: &mut [T],
    mut depth: u32,
    precedes: impl Fn(&T, &T) -> bool + Copy,
) {
    while items.len() > SHORT {
        if depth == 0 {
            make_heap(items, precedes);
            return sort_heap(items, precedes);
        }
        depth -= 1;
        let cut = divide(items, precedes);
        let (front, back) = items.split_at_mut(cut);
        sort_roughly(back, depth, precedes);
        items = front;
    }
}

/// `std::nth_element`: puts the item where sorting would put it, those before it to its left.
fn select<T: Copy>(items: &mut [T], nth: usize, precedes: impl Fn(&T, &T) -> bool + Copy) {
    let (mut begin, mut end, mut depth) = (0, items.len(), depth_of(items.len()));
    while end - begin > 3 {
        if depth == 0 {
            let items = &mut items[begin..end];
            select_by_heap(items, nth + 1 - begin, precedes);
            return items.swap(0, nth - begin);
        }
        depth -= 1;
        let cut = begin + divide(&mut items[begin..end], precedes);
        if cut <= nth { begin = cut } else { end = cut }
    }
    insert_each(&mut items[begin..end], precedes);
}

/// Divides around the median of the second, the middle and the last item, and returns where the second
/// part begins. There are more than three items.
fn divide<T: Copy>(items: &mut [T], precedes: impl Fn(&T, &T) -> bool + Copy) -> usize {
    let (second, middle, last) = (1, items.len() / 2, items.len() - 1);
    let before = |a: usize, b: usize| precedes(&items[a], &items[b]);
    let median = match (before(second, middle), before(middle, last), before(second, last)) {
        (true, true, _) | (false, false, false) => middle,
        (true, false, true) | (false, true, false) => last,
        (true, false, false) | (false, _, true) => second,
    };
    items.swap(0, median);
    let pivot = items[0];
    let (mut left, mut right) = (1, items.len());
    loop {
        while precedes(&items[left], &pivot) {
            left += 1;
        }
        right -= 1;
        while precedes(&pivot, &items[right]) {
            right -= 1;
        }
        if left >= right {
            return left;
        }
        items.swap(left, right);
        left += 1;
    }
}

/// Sorts by insertion, which keeps the order of equals.
fn insert_each<T: Copy>(items: &mut [T], precedes: impl Fn(&T, &T) -> bool) {
    for at in 1..items.len() {
        let item = items[at];
        let mut hole = at;
        while hole > 0 && precedes(&item, &items[hole - 1]) {
            items[hole] = items[hole - 1];
            hole -= 1;
        }
        items[hole] = item;
    }
}

/// `std::__heap_select`: the `count` items that belong to the front, as a heap.
fn select_by_heap<T: Copy>(
    items: &mut [T],
    count: usize,
    precedes: impl Fn(&T, &T) -> bool + Copy,
) {
    make_heap(&mut items[..count], precedes);
    for at in count..items.len() {
        if precedes(&items[at], &items[0]) {
            let item = items[at];
            items[at] = items[0];
            sink(&mut items[..count], 0, item, precedes);
        }
    }
}

/// Makes a heap, with the item on top that belongs last.
pub(crate) fn make_heap<T: Copy>(items: &mut [T], precedes: impl Fn(&T, &T) -> bool + Copy) {
    for at in (0..items.len() / 2).rev() {
        sink(items, at, items[at], precedes);
    }
}

/// Sorts what is a heap.
pub(crate) fn sort_heap<T: Copy>(items: &mut [T], precedes: impl Fn(&T, &T) -> bool + Copy) {
    for end in (1..items.len()).rev() {
        let last = items[end];
        items[end] = items[0];
        sink(&mut items[..end], 0, last, precedes);
    }
}

/// Puts `item` into a heap in place of the one at `top`: the hole left there is moved down to a leaf, and
/// the item up again from it.
pub(crate) fn sink<T: Copy>(
    heap: &mut [T],
    top: usize,
    item: T,
    precedes: impl Fn(&T, &T) -> bool,
) {
    let len = heap.len();
    let mut hole = top;
    loop {
        let right = 2 * hole + 2;
        let child = match right {
            _ if right < len && !precedes(&heap[right], &heap[right - 1]) => right,
            _ if right <= len => right - 1,
            _ => break,
        };
        heap[hole] = heap[child];
        hole = child;
    }
    while hole > top {
        let parent = (hole - 1) / 2;
        if !precedes(&heap[parent], &item) {
            break;
        }
        heap[hole] = heap[parent];
        hole = parent;
    }
    heap[hole] = item;
}
