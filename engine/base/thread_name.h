// Names for threads, as `top -H` and profilers show them.
#ifndef ULTRASKETCH_ENGINE_BASE_THREAD_NAME_H_
#define ULTRASKETCH_ENGINE_BASE_THREAD_NAME_H_

#include <pthread.h>

namespace ultrasketch {

// At most 15 characters; longer names are not taken.
inline void NameThisThread(const char* name) { pthread_setname_np(pthread_self(), name); }

}  // namespace ultrasketch

#endif  // ULTRASKETCH_ENGINE_BASE_THREAD_NAME_H_
