/* The daemon's log: one line an event on standard error, as text for a person or JSON for a collector.
 * Thread-safe. It does not wait for a reader who is slow: what there is no room for is dropped, and a line says how
 * many they were once there is room again. Never log a token, a key or a value. */
#ifndef SYM_BASE_LOG_H
#define SYM_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* The level below which nothing is written (default LOG_INFO), and whether lines are JSON (default: no). */
void log_setup(enum log_level level, bool json);

/* "debug", "info", "warn", "error" to a level; -1 if it is none of them. */
int log_level_parse(const char *name);

bool log_enabled(enum log_level level);

/* Writes one line; longer than 4 KiB is cut. Control characters are escaped. */
void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_debug(...) (log_enabled(LOG_DEBUG) ? log_write(LOG_DEBUG, __VA_ARGS__) : (void)0)
#define log_info(...) log_write(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_write(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)

#endif
