--- What a command says of an answer that comes from this manager alone.
local M = {}

--- Tells the person at the client that what follows may be old. @fresh: what symphony.cluster.state.read returned; with
--- --json it is the answer's own fields that say it.
function M.note(ctx, fresh)
  if fresh and fresh.stale and not ctx.json then
    ctx.err(("stale: no quorum (%s): this is the manager's own state at revision %d\n"):format(fresh.reason,
      fresh.revision))
  end
end

return M
