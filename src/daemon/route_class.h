/* The classes that requests are counted in (http_req.class): few, and named for what an operator asks about. */
#ifndef SYM_DAEMON_ROUTE_CLASS_H
#define SYM_DAEMON_ROUTE_CLASS_H

#include "net/http.h"

/* In the order of their numbers, without "other", which is 0; NULL behind the last. */
extern const char *const route_classes[HTTP_CLASSES + 1];

/* By method and path alone: also of a request that is refused. */
uint8_t route_class(const struct http_req *req);

#endif
