-- symphony block ...: the worker that this daemon is, for the service `block`.
local joining = require "symphony.cli.joining"

local join = joining.command {
  word = "block",
  summary = "Join this worker to a cluster",
  description = [[
Joins this daemon, `symphonyd block`, to the cluster of the manager at HOST:PORT (its remote port), as
a worker. Without a token the request waits until somebody approves it there with `symphony node
approve`. A join that was interrupted is finished by saying it again.

Example:
  symphony block join 10.0.0.5:27242 --token SYMTKN-1-...
  symphony block join manager-01.example.org --token-file /run/token]],
  text = function(done)
    return ("Joined cluster %s as %s, node id %s: %s."):format(done.cluster_id, done.name, done.node_id, done.status)
  end,
}

local leave = {
  name = "leave",
  summary = "Leave the cluster and forget it",
  description = [[
Takes this worker out of its cluster and wipes what it kept of it; then it can join again, here or
elsewhere. Refused while the node has something to do, unless --force. On a worker that was removed
it only forgets.

Example:
  symphony block leave]],
  args = function(parser)
    parser:flag("--force", "Also while it has something to do, or when no manager can be reached: forget anyway.")
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.worker").leave { force = ctx.args.force }
    if not answer then return nil, err end
    return answer, { text = function()
      return ("%s has left cluster %s.%s"):format(answer.name, answer.cluster_id, answer.told and "" or
        " No manager was told: `symphony node rm` there takes it off their list.")
    end }
  end,
}

-- What is said of a worker in a few lines.
local function status_text(s)
  if s.message then return s.message .. (s.hint and "\n" .. s.hint or "") end
  local lines = {}
  local function line(name, ...) lines[#lines + 1] = ("%-10s "):format(name) .. (...):format(select(2, ...)) end
  for _, text in ipairs(s.warnings) do lines[#lines + 1] = "WARNING: " .. text end
  line("cluster", "%s (%s)", s.cluster_name or "?", s.cluster_id)
  line("node", "%s, node id %s", s.name, s.node_id)
  line("status", "%s, %s", s.status or "unknown", s.availability or "availability unknown")
  line("manager", "%s", s.manager and ("connected to %s, revision %d"):format(s.manager, s.revision)
    or "not connected")
  line("gossip", "%d nodes alive, health %d", s.gossip.alive, s.gossip.health)
  line("to do", "%d assignments", s.assignments)
  line("version", "%s", s.version)
  return table.concat(lines, "\n")
end

local status = {
  name = "status",
  summary = "This worker at a glance",
  description = [[
What this worker is, which manager it is connected to, whom it sees, and what is wrong.

Example:
  symphony block status]],
  run = function()
    local s, err = require("symphony.cluster.worker").status()
    if not s then return nil, err end
    return s, { text = status_text }
  end,
}

return { name = "block", summary = "This worker, for the service block", commands = { join, leave, status } }
