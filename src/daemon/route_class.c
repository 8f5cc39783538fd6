#include "daemon/route_class.h"

#include <string.h>

enum class {
    OTHER,
    KV_GET,
    KV_LIST,
    KV_PUT,
    TXN,
    WATCH,
    STATUS,
    COMMAND,
    MEMBERSHIP,
    AGENT,
    HEALTH,
    METRICS
};
_Static_assert((int)METRICS < (int)HTTP_CLASSES, "a class has no count");

const char *const route_classes[HTTP_CLASSES + 1] = {"other", "kv_get", "kv_list", "kv_put", "txn", "watch",
    "status", "command", "membership", "agent", "health", "metrics", NULL};

static const struct {
    const char *path; /* and what lies below it */
    uint8_t class;
} known[] = {
    {"/v1/txn", TXN},
    {"/v1/watch", WATCH},
    {"/v1/agent", AGENT},
    {"/v1/gossip", AGENT},
    {"/v1/status", STATUS},
    {"/v1/members", STATUS},
    {"/v1/nodes", STATUS},
    {"/v1/version", STATUS},
    {"/v1/events", STATUS},
    {"/v1/command", COMMAND},
    {"/v1/lua", COMMAND},
    {"/v1/join", MEMBERSHIP},
    {"/v1/renew", MEMBERSHIP},
    {"/v1/manager", MEMBERSHIP},
    {"/healthz", HEALTH},
    {"/readyz", HEALTH},
    {"/metrics", METRICS},
};

static bool is_or_below(const char *path, const char *at)
{
    size_t n = strlen(at);
    return strncmp(path, at, n) == 0 && (path[n] == '\0' || path[n] == '/');
}

uint8_t route_class(const struct http_req *req)
{
    static const char kv[] = "/v1/kv";
    const size_t n = sizeof kv - 1;
    if (req->path_len >= n && memcmp(req->path, kv, n) == 0 &&
        (req->path[n] == '\0' || req->path[n] == '/')) {
        bool get = req->method[0] == 'G' || req->method[0] == 'H';
        return !get ? KV_PUT : req->path_len > n + 1 ? KV_GET : KV_LIST;
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (is_or_below(req->path, known[i].path)) {
            return known[i].class;
        }
    }
    return OTHER;
}
