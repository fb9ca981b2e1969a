// Threads that share the chunks of one piece of work with the thread that brings it. There are as
// many, the caller's among them, as OpenBLAS was told to use.

#pragma once

namespace workers {

// How many threads there are, the caller's among them.
int count();

// Calls `work(context, chunk, worker)` for every chunk below `chunks`, and returns when all are done.
// `worker` is below `count()`, and no two calls run at a time with the same one. `work` must not throw.
//
// The caller takes chunks itself, so it never waits for a thread that has yet to wake. While one
// piece of work is shared, a second caller does all of its own alone, and so does work that is part of a
// chunk; `worker` is 0 then.
void share(int chunks, void (*work)(const void* context, int chunk, int worker),
           const void* context);

// The same for a function object, called as `work(chunk, worker)`.
template <typename Work>
void share(int chunks, const Work& work) {
  share(
      chunks,
      [](const void* context, int chunk, int worker) {
        (*static_cast<const Work*>(context))(chunk, worker);
      },
      &work);
}

// How many chunks of a size cover `count` items.
inline int chunks(long count, long size) { return static_cast<int>((count + size - 1) / size); }

}  // namespace workers
