-- The agents of the workers that are connected to this manager: each holds a stream of what its node has to know, and
-- gets every change as it is applied here. What the lines are is in docs/api.md (GET /v1/agent).
--
-- One watch a theme serves all of them, since a change is for one node, by its id, or for everybody. What everybody is
-- told of in numbers, nodes that come and go, is sent in bundles.
local async = require "symphony.async"
local errors = require "symphony.errors"
local json = require "symphony.json"
local keyring = require "symphony.cluster.keyring"
local log = require "sym.log"
local members = require "symphony.cluster.members"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"

local M = {
  retry_ms = 1000, -- before the state is read again that could not be
  bundle_ms = 50,  -- in which news of peers are gathered
  behind_ms = 2000, -- for the state here to be where an agent has seen it
}

local HEARTBEAT_MS = 10000
local SLICES = 20              -- of the agents, that get their heartbeats one after the other
local BACKLOG_MAX = 2 << 20    -- bytes that wait for one agent; beyond, it is cut off, and lists when it is back
local PAGE = 512               -- peers in a piece of the first listing
local LOST_KEPT_MS = 15 * 60 * 1000

local streams = {}             -- node id -> stream
local count = 0
local lost = {}                -- node id -> when its stream ended (mono ms)
local listeners = {}
local watches = {}
local stale = false            -- they have ended, and start_over() is due
local wanted = false           -- between start() and stop()
local peers                    -- node id -> line; nil: not serving
local clients = {}             -- the name of a client certificate -> line
local mark = { max = 0, count = 0 }
local listing                  -- {pages = of all peers, used = when (mono ms)}; nil: to be made
local LISTING_KEPT_MS = 10000
local general = {}             -- the lines of /cluster and /secret/gossip, as last sent
local bundle                   -- lines about peers that are about to go out
local beat
local turn = 0

-- Streams -----------------------------------------------------------------------------------------------------------

local Stream = {}
Stream.__index = Stream

local function flush(s)
  if s.busy or #s.lines == 0 then return end
  local text = table.concat(s.lines)
  s.lines, s.bytes, s.busy = {}, 0, true
  s.req:write(text, function(err)
    s.busy = false
    if not err and not s.over then flush(s) end
  end)
end

function Stream:push(line)
  if self.over then return end
  self.lines[#self.lines + 1] = line
  self.bytes = self.bytes + #line
  if self.bytes > BACKLOG_MAX then
    log.warn(("agent of %s: too slow for what changes, cut off"):format(self.id))
    self.over = true
    self.req:abort()
    return
  end
  if self.open then flush(self) end
end

-- Ends it, with the reason for the agent.
function Stream:finish(err)
  if self.over then return end
  self.over = true
  self.req:write(json.encode(errors.body(err)) .. "\n", function() end)
  self.req:finish()
end

local function each(fn)
  for _, s in pairs(streams) do fn(s) end
end

local function line(doc)
  return json.encode(doc) .. "\n"
end

-- What everybody is told ------------------------------------------------------------------------------------------

local function mark_text()
  return ("%d.%d"):format(mark.max, mark.count)
end

local function send_bundle()
  local text = table.concat(bundle) .. line { peers = mark_text() }
  bundle = nil
  each(function(s) s:push(text) end)
end

local function tell_peer(text)
  if not bundle then
    bundle = {}
    async.spawn(function()
      async.sleep(M.bundle_ms)
      if bundle then send_bundle() end
    end)
  end
  bundle[#bundle + 1] = text
end

local function peer_line(id, value)
  local doc = json.decode(value)
  if type(doc) ~= "table" or type(doc.key) ~= "string" then return nil end
  return line { peer = id, key = doc.key, role = doc.role }
end

-- A client certificate, so that nodes without the state can tell who asks for their figures.
local function client_line(name, value)
  local doc = json.decode(value)
  if type(doc) ~= "table" or type(doc.fingerprint) ~= "string" then return nil end
  return line { client = name, role = doc.role, fingerprint = doc.fingerprint }
end

-- The line of /cluster with where the managers are, in an order that stays; nil when there is no state yet.
local function cluster_line()
  local c, rows = state.cluster(), state.managers()
  if not c or not rows then return nil end
  return line { cluster = { id = c.id, name = c.name, epoch = c.epoch, ca = c.ca, trust = c.trust or 1, sign = c.sign,
    dev = c.dev or nil, managers = json.array(members.addresses(rows, nil)) } }
end

local function gossip_line()
  local secret = state.get("/secret/gossip")
  return secret and line { gossip = { keys = keyring.keys(secret) } }
end

local function tell_all(what, text)
  if text and text ~= general[what] then
    general[what] = text
    each(function(s) s:push(text) end)
  end
end

-- Watches ---------------------------------------------------------------------------------------------------------

local function on_peer(event)
  local id = event.key:match("^/peer/(.+)$")
  listing = nil
  if event.deleted then
    if peers[id] then mark.count = mark.count - 1 end
    peers[id] = nil
    return tell_peer(line { peer = id, gone = true })
  end
  local text = peer_line(id, event.value)
  if not text then return end
  if not peers[id] then mark.count = mark.count + 1 end
  peers[id], mark.max = text, math.max(mark.max, event.revision)
  tell_peer(text)
end

local function on_client(event)
  local name = event.key:match("^/client/(.+)$")
  clients[name] = not event.deleted and client_line(name, event.value) or nil
  local text = clients[name] or line { client = name, gone = true }
  each(function(s) s:push(text) end)
end

local function own(id, event, text)
  local s = streams[id]
  if s and event.revision > s.from then s:push(text) end
end

-- A record without what the node knows, or what is as long as a record.
local function own_node(value)
  local n = json.decode(value)
  if type(n) ~= "table" then return line { node = json.null } end
  n.certificate = nil
  return line { node = n }
end

local function on_node(event)
  local id = event.key:sub(7)
  if event.deleted then
    -- The connection is closed at this revision anyway (src/daemon).
    lost[id] = nil
  else
    own(id, event, own_node(event.value))
  end
  tell_all("cluster", cluster_line())
end

local function on_status(event)
  own(event.key:match("^/status/node/(.+)$"), event,
    line { status = event.deleted and json.null or json.decode(event.value) })
end

local function assignment(key, value, revision)
  if value == nil then return line { delete = key, revision = revision } end
  local decoded = json.decode(value)
  if decoded == nil then decoded = json.null end -- it is damaged
  return line { put = key, value = decoded, revision = revision }
end

local function on_assign(event)
  local id, key = event.key:match("^/assign/([^/]+)/(.+)$")
  if id then own(id, event, assignment(key, event.value, event.revision)) end
end

local THEMES = {
  { "/peer/", on_peer }, { "/node/", on_node }, { "/status/node/", on_status }, { "/assign/", on_assign },
  { "/client/", on_client },
  { "/cluster", function() tell_all("cluster", cluster_line()) end },
  { "/secret/gossip", function() tell_all("gossip", gossip_line()) end },
}

local function watch(theme)
  local prefix, fn = table.unpack(theme)
  local w, err = store.watch(prefix, store.revision(), function(status, events)
    if status then
      -- The history is gone, a snapshot came: everybody lists again, once for all the watches that end.
      if status.code == "compacted" and not stale then
        stale = true
        async.spawn(M.start_over)
      end
      return
    end
    for _, event in ipairs(events) do
      local ok, why = xpcall(fn, errors.handler, event)
      if not ok then log.error("agents: " .. (why.traceback or why.message)) end
    end
  end)
  if not w then log.error(("agents: cannot watch %s: %s"):format(prefix, err.message)) end
  watches[prefix] = w
end

-- Serving ---------------------------------------------------------------------------------------------------------

-- Where the agent's copy of what everybody is told would be the same, it is not sent again.
local function first_lines(node, known)
  local out = { general.cluster or cluster_line(), general.gossip or gossip_line() }
  local n, status = store.get("/node/" .. node.node_id), store.get("/status/node/" .. node.node_id)
  out[#out + 1] = own_node(n and n.value or "null")
  out[#out + 1] = line { status = status and json.decode(status.value) or json.null }
  local assigned = assert(state.list_raw("/assign/" .. node.node_id .. "/"))
  for _, kv in ipairs(assigned) do
    out[#out + 1] = assignment(kv.key:match("^/assign/[^/]+/(.+)$"), kv.value, kv.mod_revision)
  end
  out[#out + 1] = line { clients = "all" } -- they are few
  for _, text in pairs(clients) do out[#out + 1] = text end
  local same = known == mark_text()
  out[#out + 1] = line { peers = same and "same" or "all" }
  return out, not same
end

-- Waits until the state here is that of @epoch, or a later one, and of @revision. What an agent has seen in an earlier
-- epoch is no measure: a recovery may have gone back behind it. True when what it knows is of the epoch that is here.
-- Raises.
local function wait_for(epoch, revision)
  local deadline = sys.mono_ms() + M.behind_ms
  while peers do
    local cluster, err = state.cluster()
    if not cluster then error(err, 0) end
    local ours = cluster.epoch or 1
    if epoch < ours then return false end
    if epoch == ours and store.revision() >= revision then return true end
    if sys.mono_ms() >= deadline then
      errors.raise("state_unknown", ("this manager is at revision %d of epoch %d, behind revision %d of epoch %d")
        :format(store.revision(), ours, revision, epoch), "ask another manager")
    end
    async.sleep(20)
  end
  errors.raise("closed", "this manager is starting or ending", "ask another manager")
end

-- One node, one agent: the later start is the one that lives. Raises "conflict" for another.
local function make_room(id, opts)
  local other = streams[id]
  if not other or other.over then return end
  if other.instance ~= opts.instance and opts.starts <= other.starts then
    errors.raise("conflict", "another daemon is connected with the key of this node: a folder that was copied is not a "
      .. "second node", "join with an empty --config-dir; or stop the other one")
  end
  other:finish(errors.new("conflict", "another daemon has connected with the key of this node"))
end

local function tell(what, id, connected)
  for _, fn in ipairs(listeners) do
    local ok, err = xpcall(fn, errors.handler, id, connected)
    if not ok then log.error(what .. ": " .. (err.traceback or err.message)) end
  end
end

-- All peers, in pieces: the same for all who come while nobody joins or goes, as when a manager has died.
local function pages()
  if not listing then
    local all, page = {}, {}
    for _, text in pairs(peers) do
      page[#page + 1] = text
      if #page == PAGE then
        all[#all + 1], page = table.concat(page), {}
      end
    end
    if #page > 0 then all[#all + 1] = table.concat(page) end
    listing = { pages = all }
  end
  listing.used = sys.mono_ms()
  return listing.pages
end

-- Serves @req, an agent of @node. @opts: starts, instance, epoch and min (a revision in it) that it has seen, peers
-- (its mark). In a task; raises. The answer has been begun when this returns, and goes on by itself.
function M.serve(req, node, opts)
  local same_epoch = wait_for(opts.epoch, opts.min)
  make_room(node.node_id, opts)
  local id = node.node_id
  local s = setmetatable({ id = id, req = req, lines = {}, bytes = 0, since = sys.mono_ms(), starts = opts.starts,
    instance = opts.instance, from = store.revision() }, Stream)
  local first, list = first_lines(node, same_epoch and opts.peers or nil)
  -- What changes from here on comes behind the listing.
  local of_then, mark_then = list and pages(), mark_text()
  local watched, gone = req:on_gone(function()
    s.over = true
    if streams[id] ~= s then return end
    streams[id], count = nil, count - 1
    lost[id] = sys.mono_ms()
    tell("agents", id, false)
  end)
  if not watched then error(errors.from(gone), 0) end
  count, streams[id], lost[id] = streams[id] and count or count + 1, s, nil
  req:start(200, "application/x-ndjson")
  local function send(text)
    local ok, err = async.await(req.write, req, text)
    if not ok then error(err, 0) end
  end
  send(table.concat(first))
  if list then
    for _, page in ipairs(of_then) do send(page) end
  end
  if s.over then return end
  table.insert(s.lines, 1, line { synced = s.from, peers = mark_then })
  s.open = true
  flush(s)
  tell("agents", id, true)
end

-- What is known of an agent here -----------------------------------------------------------------------------------

-- Since when (mono ms) the agent of node @id is connected to this manager; nil: it is not.
function M.connected(id)
  local s = streams[id]
  return s and not s.over and s.since or nil
end

-- How long ago (ms) its stream to this manager ended; nil: it has had none, or has one.
function M.lost(id)
  return lost[id] and sys.mono_ms() - lost[id]
end

-- fn(id, connected) whenever one comes or goes.
function M.on_change(fn)
  listeners[#listeners + 1] = fn
end

-- How many are connected to this manager.
function M.count()
  return count
end

-- Life ----------------------------------------------------------------------------------------------------------------

-- A manager that has lost the others goes on with what it has, and says so.
local function heartbeat_line()
  local status = raft.status()
  local led = status and status.has_quorum and status.leader and status.leader ~= 0
  return line { heartbeat = store.revision(), alone = not led or nil }
end

-- A stream may outlive the certificate that it began with. Its node has another one long since, or has to get one.
local function has_expired(s, now)
  return s.req.peer.expires and now > s.req.peer.expires
end

-- The next of SLICES parts of the agents hears that this manager is there.
function M.beat()
  turn = (turn + 1) % SLICES
  local text, wall = nil, sys.now()
  for id, s in pairs(streams) do
    local its_turn = id:byte(-1) % SLICES == turn
    if its_turn and has_expired(s, wall) then
      s:finish(errors.new("expired", "the certificate that this stream began with has expired"))
    elseif its_turn and s.open and not s.busy then
      text = text or heartbeat_line()
      s:push(text)
    end
  end
  local now = sys.mono_ms()
  if listing and now - listing.used > LISTING_KEPT_MS then listing = nil end
  for id, at in pairs(lost) do
    if now - at > LOST_KEPT_MS then lost[id] = nil end
  end
end

local function load_peers()
  local rows, err = state.list_raw("/peer/")
  if not rows then return nil, err end
  peers, mark, listing = {}, { max = 0, count = 0 }, nil
  for _, kv in ipairs(rows) do
    local id = kv.key:match("^/peer/(.+)$")
    peers[id] = peer_line(id, kv.value)
    if peers[id] then mark = { max = math.max(mark.max, kv.mod_revision), count = mark.count + 1 } end
  end
  return true
end

local function load_clients()
  local rows, err = state.list_raw("/client/")
  if not rows then return nil, err end
  clients = {}
  for _, kv in ipairs(rows) do
    local name = kv.key:match("^/client/(.+)$")
    clients[name] = client_line(name, kv.value)
  end
  return true
end

local function begin()
  local ok, err = load_clients()
  if ok then ok, err = load_peers() end
  if not ok then return nil, err end
  for _, theme in ipairs(THEMES) do watch(theme) end
  general = { cluster = cluster_line(), gossip = gossip_line() }
  beat = async.every(HEARTBEAT_MS / SLICES, M.beat)
  return true
end

-- From now on agents are served; when the state cannot be read, it is tried again by and by. Said twice, it is one.
function M.start()
  wanted = true
  if peers then return end
  local ok, err = begin()
  if ok then return end
  log.error("agents: " .. err.message)
  async.spawn(function()
    async.sleep(M.retry_ms)
    if wanted then M.start() end
  end)
end

-- Ends every stream, and refuses agents from now on.
function M.stop()
  wanted = false
  if beat then beat.stop() end
  beat, peers, listing, bundle, general = nil, nil, nil, nil, {}
  for prefix, w in pairs(watches) do
    watches[prefix] = nil
    w:close()
  end
  each(function(s) s:finish(errors.new("closed", "this manager is stopping")) end)
end

-- All agents list again; nothing when none are served.
function M.start_over()
  stale = false
  if not peers then return end
  M.stop()
  M.start()
end

-- A mark as agents give it, for tests: what they have of the peers.
M.mark = mark_text

return M
