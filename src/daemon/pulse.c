#include "daemon/pulse.h"

enum { PULSE_MS = 1000 };

static void on_turn(uv_prepare_t *prepare)
{
    struct pulse *p = prepare->data;
    uint64_t now = uv_hrtime();
    uint64_t idle = uv_metrics_idle_time(prepare->loop);
    uint64_t gone = now - p->turned, waited = idle - p->idle;
    if (p->turned != 0) {
        histogram_add(&p->turns, gone > waited ? gone - waited : 0);
    }
    p->turned = now;
    p->idle = idle;
}

static void on_timer(uv_timer_t *timer)
{
    struct pulse *p = timer->data;
    uint64_t now = uv_hrtime();
    histogram_add(&p->late, now > p->due ? now - p->due : 0);
    /* The loop has set it anew from its own time, which is that of the turn. */
    p->due = (uv_now(timer->loop) + PULSE_MS) * 1000000;
}

void pulse_start(struct pulse *p, uv_loop_t *loop)
{
    (void)uv_loop_configure(loop, UV_METRICS_IDLE_TIME);
    uv_prepare_init(loop, &p->prepare);
    uv_timer_init(loop, &p->timer);
    p->prepare.data = p->timer.data = p;
    uv_unref((uv_handle_t *)&p->prepare);
    uv_unref((uv_handle_t *)&p->timer);
    uv_prepare_start(&p->prepare, on_turn);
    uv_update_time(loop);
    uv_timer_start(&p->timer, on_timer, PULSE_MS, PULSE_MS);
    p->due = (uv_now(loop) + PULSE_MS) * 1000000;
}

void pulse_stop(struct pulse *p)
{
    uv_close((uv_handle_t *)&p->prepare, NULL);
    uv_close((uv_handle_t *)&p->timer, NULL);
}
