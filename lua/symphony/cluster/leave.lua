-- `manager leave`: this manager goes out by its own will and forgets the cluster, so that it can join again. On one
-- that was removed, only the forgetting.
local async = require "symphony.async"
local busy = require "symphony.cluster.busy"
local errors = require "symphony.errors"
local identity = require "symphony.cluster.identity"
local lifecycle = require "symphony.cluster.lifecycle"
local members = require "symphony.cluster.members"
local remove = require "symphony.cluster.remove"

local M = {}

-- What leaving means here. Pure: "forget" (no member any more), "last" (the cluster ends with it), "remove"; nil, err.
function M.way(me, n_members, force)
  if not me then
    return nil, errors.new("no_cluster", "this daemon belongs to no cluster: there is nothing to leave")
  end
  if me.removed or me.phase == "leave" or me.phase == "init" then return "forget" end
  if n_members == 1 then
    if force then return "last" end
    return nil, errors.new("conflict", "this is the last manager: the cluster and its state would end with it",
      "`symphony cluster backup FILE` first, if anything of it is wanted; then `symphony manager leave --force`")
  end
  return "remove"
end

local function forget(me)
  assert(identity.become(identity.changed(me, { phase = "leave" })))
  assert(lifecycle.deactivate())
  assert(identity.wipe())
end

-- @opts: force. Returns the answer; nil, err.
function M.run(opts)
  local fits, misfit = identity.needs("manager")
  if not fits then return nil, misfit end
  local me = identity.me
  local rows = me and not me.removed and members.planned() or nil
  local way, err = M.way(me, rows and #rows or nil, opts.force)
  if not way then return nil, err end
  local lock
  lock, err = busy.take("manager leave")
  if not lock then return nil, err end
  return async.spawn(function()
    local _ <close> = lock
    if way == "remove" then
      local ok, why = remove.run(me.node_id, { force = opts.force })
      -- The answer may be lost with the connections of one who is out; and by force it goes without the others.
      local without = opts.force and why and (why.code == "no_quorum" or why.code == "conflict")
      if not ok and not me.removed and not without then
        if why.code ~= "no_quorum" then return nil, why end
        return nil, errors.new(why.code, why.message, (why.hint and why.hint .. "; " or "")
          .. "`symphony manager leave --force` forgets the cluster without the others")
      end
    end
    forget(me)
    return { cluster_id = me.cluster_id, node_id = me.node_id, raft_node_id = me.raft_node_id, name = me.name,
      ended = way == "last" or nil }
  end):wait()
end

return M
