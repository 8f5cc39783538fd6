-- symphony manager ...: the cluster's managers. Modules of the daemon are loaded when a command runs there: the client
-- reads this file too.
local errors = require "symphony.errors"
local joining = require "symphony.cli.joining"
local stale = require "symphony.cli.stale"

-- init ----------------------------------------------------------------------------------------------------------------

local function life(ttl)
  if ttl == false then return "never expire" end
  local hours = ttl / 3600
  return hours >= 1 and ("are good for %g hours"):format(hours) or ("are good for %d seconds"):format(ttl)
end

local init = {
  name = "init",
  summary = "Make a cluster of this one manager",
  description = [[
Makes a cluster whose first manager is this daemon: its CA, its first state and a token for each
role. Prints the commands with which others join.

Example:
  symphony manager init
  symphony manager init --name manager-01 --token-ttl 7d]],
  args = function(parser)
    parser:option("--name", "This manager's name (default: the host's)."):argname("NAME")
    parser:option("--cluster-name", "The cluster's name (default symphony)."):argname("NAME")
    parser:option("--token-ttl", "How long the two tokens are good: 90s, 30m, 24h, 7d, never (default 24h).")
      :argname("TIME")
    parser:option("--advertise", "The address that others are told (default: the daemon's --advertise-addr).")
      :argname("HOST")
    parser:flag("--dev", "Development mode: who joins over this machine's loopback needs no token. Loopback only.")
  end,
  run = function(ctx)
    local tokens, values = require "symphony.cluster.tokens", require "symphony.cluster.values"
    local ttl, err = tokens.DEFAULT_TTL, nil
    if ctx.args.token_ttl then ttl, err = values.parse_duration(ctx.args.token_ttl) end
    if err then return nil, err end
    local answer, more = require("symphony.cluster.init").run {
      name = ctx.args.name, cluster_name = ctx.args.cluster_name, token_ttl = ttl, dev = ctx.args.dev,
      advertise = ctx.args.advertise,
    }
    if not answer then return nil, more end
    return answer, { text = function()
      local lines = {
        ("Cluster %s is made. This manager is %s, raft id 1, node id %s."):format(answer.cluster_id, more.name,
          answer.node_id),
        "",
        "To add a manager, on its machine (three of them survive the loss of any one):",
        "",
        ("  symphony manager join %s --token %s"):format(more.remote, answer.tokens.manager),
        "",
        "To add a worker, on a machine where `symphonyd block` runs:",
        "",
        ("  symphony block join %s --token %s"):format(more.remote, answer.tokens.worker),
        "",
        ("The tokens %s; `symphony token create` makes others."):format(life(ttl)),
      }
      if more.dev then
        table.insert(lines, "")
        table.insert(lines, require("symphony.cluster.members").DEV_WARNING)
      end
      return table.concat(lines, "\n")
    end }
  end,
}

-- join ----------------------------------------------------------------------------------------------------------------

local join = joining.command {
  word = "manager",
  summary = "Join this manager to a cluster",
  description = [[
Joins this daemon to the cluster of the manager at HOST:PORT (its remote port). Without a token the
request waits until somebody approves it there with `symphony node approve`. A join that was
interrupted is finished by saying it again.

Example:
  symphony manager join 10.0.0.5:27242 --token SYMTKN-1-...
  symphony manager join manager-01.example.org --token-file /run/token]],
  text = function(done)
    local text = ("Joined cluster %s as %s (%s), raft id %d. It has %d managers, %d of them voters."):format(
      done.cluster_id, done.name, done.raft_role, done.raft_node_id, done.members, done.voters)
    return done.warning and text .. "\nNote: " .. done.warning or text
  end,
}

-- members, status -----------------------------------------------------------------------------------------------------

local members = {
  name = "members ls",
  summary = "The managers, their roles and who leads",
  description = [[
Lists the managers. Without a quorum the answer is this manager's own state, marked stale.

Example:
  symphony manager members
  symphony --json manager members]],
  run = function(ctx)
    local rows, fresh = require("symphony.cluster.members").list()
    if not rows then return nil, fresh end
    stale.note(ctx, fresh)
    return require("symphony.json").array(rows), {
      columns = { "RAFT ID", "NAME", "ROLE", "LEADER", "REACHABLE", "RAFT ADDRESS", "REMOTE ADDRESS", "NODE ID" },
      row = function(m)
        local role = m.leaving and m.raft_role .. ", leaving" or m.raft_role
        return { m.raft_node_id, m.name, role, m.leader and "*" or "", m.reachable, m.raft_address, m.remote_address,
          m.node_id }
      end,
    }
  end,
}

local function loss(n)
  return n < 1 and "no failure" or n == 1 and "the loss of any one" or ("the loss of any %d"):format(n)
end

local function nodes_text(t)
  local parts = {}
  for _, status in ipairs { "ready", "joining", "left", "down" } do
    if t[status] > 0 then parts[#parts + 1] = ("%d %s"):format(t[status], status) end
  end
  local more = t.down > #t.lost and ", ..." or ""
  return ("%d: %s%s"):format(t.total, table.concat(parts, ", "),
    t.down > 0 and (" (%s%s)"):format(table.concat(t.lost, ", "), more) or "")
end

local function status_text(s)
  if not s.cluster_id or s.message then return s.message .. (s.hint and "\n" .. s.hint or "") end
  local lines = {}
  local function line(name, ...) lines[#lines + 1] = ("%-10s "):format(name) .. (...):format(select(2, ...)) end
  for _, text in ipairs(s.warnings) do lines[#lines + 1] = "WARNING: " .. text end
  line("cluster", "%s (%s)", s.cluster_name or "?", s.cluster_id)
  line("manager", "%s, raft id %d, node id %s", s.name, s.raft_node_id, s.node_id)
  line("role", "%s, %s", s.raft_role, s.state)
  local leader = s.leader and ("%s (raft id %d)"):format(s.leader.name or "?", s.leader.raft_node_id)
  line("leader", "%s", leader or "unknown")
  line("quorum", "%s: %d of %d voters reachable from here, %d manager%s", s.quorum and "yes" or "NO",
    s.voters_reachable, s.voters, s.members, s.members == 1 and "" or "s")
  -- Some are lost already, perhaps: how many more may be?
  local left = s.quorum and math.min(s.tolerates, s.voters_reachable - s.voters // 2 - 1) or 0
  line("tolerates", "%s", left < s.tolerates and ("%s now; with all voters up %s"):format(
    left < 1 and "no further failure" or loss(left), loss(s.tolerates)) or loss(s.tolerates))
  if s.nodes then line("nodes", "%s", require("symphony.cli.render").plain(nodes_text(s.nodes))) end
  line("state", "revision %d, %d keys, term %d", s.revision, s.keys, s.term)
  line("log", "ends at entry %d of term %d; applied %d, committed %d, snapshot %d, %.1f MiB in memory", s.last_index,
    s.last_term, s.applied_index, s.commit_index, s.snapshot_index, s.log_bytes / 1048576)
  line("version", "%s", s.version)
  return table.concat(lines, "\n")
end

-- What a daemon is that is no serving member, by the error that says so.
local NO_MEMBER = { closed = "stopped", removed = "removed", no_cluster = "idle" }

local status = {
  name = "status",
  summary = "This manager and its cluster at a glance",
  description = [[
What this manager is, who leads, whether there is a quorum, how many nodes are there, and what is
wrong.

Example:
  symphony manager status]],
  run = function()
    local identity = require "symphony.cluster.identity"
    local me, err = identity.member()
    local s
    if me then s, err = require("symphony.cluster.members").overview() end
    if s then s.nodes = require("symphony.cluster.nodes").tally() end
    -- It may just be ending; why, this manager knows better than raft.
    if not s and err.code == "closed" then err = select(2, require("symphony.cluster.state").ready()) or err end
    if not s then
      local who, name = identity.me or {}, NO_MEMBER[err.code]
      if not name then return nil, err end
      s = { state = name, message = err.message, hint = err.hint, cluster_id = who.cluster_id, node_id = who.node_id,
        raft_node_id = who.raft_node_id, name = who.name, warnings = require("symphony.json").array {} }
    end
    return s, { text = status_text }
  end,
}

-- remove, leave, transfer, recover ------------------------------------------------------------------------------------

local function plan_text(answer)
  local lines = { ("Removing %s (raft id %d):"):format(answer.name, answer.raft_node_id) }
  for i, text in ipairs(answer.steps) do lines[#lines + 1] = ("  %d. %s"):format(i, text) end
  if answer.allowed then
    lines[#lines + 1] = ("Afterwards: %d voter%s, which tolerate%s the loss of %d."):format(answer.voters,
      answer.voters == 1 and "" or "s", answer.voters == 1 and "s" or "", answer.tolerates)
  else
    lines[#lines + 1] = "It would be refused: " .. (answer.last and "it is the last manager" or
      "it would cost the quorum: " .. (answer.reason or "?"))
  end
  lines[#lines + 1] = "Nothing has been changed."
  return table.concat(lines, "\n")
end

local remove = {
  name = "remove rm",
  summary = "Take a manager, alive or dead, out of the cluster",
  description = [[
Removes the manager with this raft id, node id or name. The leader hands its leadership over first.
It is refused when the loss would cost the quorum.

Example:
  symphony manager remove 3 --plan
  symphony manager remove manager-03]],
  args = function(parser)
    parser:argument("member", "Raft id, node id or name, as `manager members` shows them."):argname("MEMBER")
    parser:flag("--plan", "Only say what would happen.")
    parser:flag("--force", "Also when it costs the quorum.")
  end,
  run = function(ctx)
    local module = require "symphony.cluster.remove"
    local answer, err = module.run(ctx.args.member, { force = ctx.args.force, plan = ctx.args.plan })
    if not answer then return nil, err end
    if ctx.args.plan then return answer, { text = plan_text } end
    answer.note = module.CA_NOTE
    return answer, { text = function()
      return ("%s (raft id %d) is removed; %d voter%s left.\nNote: %s"):format(answer.name, answer.raft_node_id,
        answer.voters, answer.voters == 1 and " is" or "s are", answer.note)
    end }
  end,
}

local leave = {
  name = "leave",
  summary = "Take this manager out of its cluster and forget it",
  description = [[
Removes this manager from its cluster and wipes what the daemon keeps of it, so that it can join
again. On a manager that was removed: only wipes.

Example:
  symphony manager leave]],
  args = function(parser)
    parser:flag("--force", "Also as the last manager, which ends the cluster, or when it costs the quorum.")
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.leave").run { force = ctx.args.force }
    if not answer then return nil, err end
    return answer, { text = function()
      return answer.ended and ("Cluster %s has ended with its last manager."):format(answer.cluster_id)
        or ("%s has left cluster %s. `symphony manager join` takes it into one again."):format(answer.name,
          answer.cluster_id)
    end }
  end,
}

local transfer = {
  name = "transfer",
  summary = "Hand the leadership to another manager",
  description = [[
Hands the leadership to the voter with this raft id, node id or name, or to the one that is
furthest.

Example:
  symphony manager transfer
  symphony manager transfer manager-02]],
  args = function(parser)
    parser:argument("member", "Raft id, node id or name."):args("?"):argname("MEMBER")
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.remove").transfer(ctx.args.member)
    if not answer then return nil, err end
    return answer, { text = function()
      return ("%s (raft id %d) %s."):format(answer.name, answer.raft_node_id, answer.changed and "leads now" or
        "leads already")
    end }
  end,
}

local function recover_question(me, others)
  local names = {}
  for i, m in ipairs(others) do names[i] = ("%s (raft id %d)"):format(m.name, m.id) end
  local out = #names == 0 and "" or (" Out for good: %s. None of them may be started again with its old folder: it "
    .. "leaves (`manager leave`) or is wiped, and joins anew. Be sure that they are gone: one of them that is alive "
    .. "takes itself out as soon as it hears of this one, and with it what it alone holds."):format(
    table.concat(names, ", "))
  return ("This manager, %s, becomes the only voter of cluster %s, with the state that it has. What a majority "
    .. "without it has acknowledged is lost.%s\nGo on?"):format(me.name, me.cluster_id, out)
end

local recover = {
  name = "recover",
  summary = "The quorum is gone for good: go on with this one survivor",
  description = [[
Makes this manager the only voter again when the majority is gone for good. It says what will happen
and asks. Say it on one survivor only, the one whose log ends last: in `manager status`, the one with
the highest term behind `ends at entry`, and of those the highest entry; the others leave and join
anew.

Example:
  symphony manager recover]],
  args = function(parser)
    parser:flag("-y --yes", "Do not ask.")
  end,
  run = function(ctx)
    local module = require "symphony.cluster.recover"
    local others, err = module.check()
    if not others then return nil, err end
    local question = recover_question(require("symphony.cluster.identity").me, others)
    if ctx.args.yes and not ctx.json then ctx.err(question .. " --yes\n") end
    if not ctx.confirm(question) then
      return nil, errors.new("canceled", "nothing was changed", "say yes to the question, or --yes where nobody can")
    end
    local answer
    answer, err = module.run()
    if not answer then return nil, err end
    return answer, { text = function()
      return ("%s is the only voter now. Let the others join it anew; `symphony manager members` shows the cluster.")
        :format(answer.name)
    end }
  end,
}

local meet = {
  name = "meet",
  summary = "Find the others when all have moved at once",
  description = [[
Learns where the other managers are from the node at HOST:PORT (its remote port), and tells it where
this one is. It is for managers that cannot find each other because all of them have other addresses
than before, and no worker has stayed where it was: say it on all but one, with the address of that
one. Otherwise managers that have moved find the others by themselves.

Example:
  symphony manager meet 10.0.1.5:27242]],
  args = function(parser)
    parser:argument("address", "The remote port of a manager, or of a worker."):argname("HOST:PORT")
  end,
  run = function(ctx)
    local answer, err = require("symphony.cluster.whereabouts").meet(ctx.args.address)
    if not answer then return nil, err end
    return answer, { text = function()
      return ("%s has been asked, and told. `symphony manager members` shows who is reachable."):format(answer.at)
    end }
  end,
}

return {
  name = "manager",
  summary = "Managers: make a cluster, join, list, remove, recover",
  commands = { init, join, members, status, remove, leave, transfer, recover, meet },
}
