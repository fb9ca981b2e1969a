// Threads that share the chunks of one piece of work with the thread that brings it. There are as
// many, the caller's among them, as OpenBLAS was told to use.

#pragma once

namespace workers {

// Calls `work(context, chunk)` for every chunk below `chunks`, and returns when all are done.
//
// The caller takes chunks itself, so it never waits for a thread that has yet to wake. While one
// piece of work is shared, a second caller does all of its own alone.
void share(int chunks, void (*work)(const void* context, int chunk), const void* context);

}  // namespace workers
