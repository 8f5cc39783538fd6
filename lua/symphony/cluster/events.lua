-- What has happened: the last events of the cluster, in the state itself. An event is written in the txn of what it
-- tells of, so that neither is there without the other.
--
-- /event/<12 digits>: {at (unix seconds), kind, node_id, name, message, reason, ...}. The numbers rise, with gaps where
-- a txn has failed; the order of events is that of their revisions. The last KEEP of them are kept.
local errors = require "symphony.errors"
local follow = require "symphony.cluster.follow"
local identity = require "symphony.cluster.identity"
local json = require "symphony.json"
local raft = require "sym.raft"
local state = require "symphony.cluster.state"
local store = require "sym.store"
local sys = require "sym.sys"

local M = {}

M.KEEP = 1000
local PREFIX = "/event/"
local TEXT_MAX = 1000       -- bytes of a message or a reason
local TRIM = 2              -- more than falls out with each new one: what failed txns have left standing
local BACKLOG_MAX = 1 << 20 -- of events that a follower has not taken

local taken = { last = 0 } -- the highest number given out, in this term of this cluster

local function key(number) return PREFIX .. ("%012d"):format(number) end
local function number_of(name) return math.tointeger(tonumber(name:sub(#PREFIX + 1), 10)) or 0 end

-- Writing -------------------------------------------------------------------------------------------------------------

-- A number that is free as far as this manager knows. Txns that are under way at the same time get different ones, so
-- that they are not in each other's way; two managers may still choose the same, and then one begins again.
local function take_number()
  local cluster, status = (identity.me or {}).cluster_id, raft.status() or {}
  if taken.cluster ~= cluster or taken.term ~= status.term then
    taken = { cluster = cluster, term = status.term, last = 0 }
  end
  local rows = assert(state.list_raw(PREFIX, { after = key(taken.last) }))
  if #rows > 0 then taken.last = math.max(taken.last, number_of(rows[#rows].key)) end
  taken.last = taken.last + 1
  return taken.last
end

local function bounded(text)
  return text and json.clean(tostring(text):sub(1, TEXT_MAX))
end

local function make(fields)
  local kind = fields.kind
  if type(kind) ~= "string" or not kind:find("^[%l_]+%.[%l_]+$") then
    error(("an event's kind is two words with a dot between, not %s"):format(tostring(kind)), 3)
  end
  local event = {}
  for name, value in pairs(fields) do
    if name ~= "node" then event[name] = value end
  end
  local n = fields.node
  if n then event.node_id, event.name = n.node_id, n.name end
  event.at = math.floor(sys.now() * 1000) / 1000
  event.message, event.reason = bounded(fields.message), bounded(fields.reason)
  return event
end

-- The deletes that keep their number down when @number comes.
local function trim(txn, number, first)
  local old = number - M.KEEP
  if old < 1 then return end
  table.insert(txn.ops, state.delete(key(old)))
  for _, kv in ipairs(first and assert(state.list_raw(PREFIX, { limit = TRIM })) or {}) do
    if number_of(kv.key) < old then table.insert(txn.ops, state.delete(kv.key)) end
  end
end

--- Adds an event to @txn ({compare =, ops =}): one compare and one to four ops, of which a txn takes 128. @fields:
--- kind ("node.joined"), message, and perhaps reason, node (a node's record: its id and name are kept) and others
--- that JSON can hold. Local state has to be fresh (in state.update it is), and the txn is to be submitted without a
--- wait in between; if the number was taken meanwhile, that is a conflict. Raises.
function M.add(txn, fields)
  local event, first = make(fields), true
  for _, op in ipairs(txn.ops) do first = first and not (op.put and op.put:sub(1, #PREFIX) == PREFIX) end
  local number = take_number()
  table.insert(txn.compare, state.absent(key(number)))
  table.insert(txn.ops, state.put(key(number), event))
  trim(txn, number, first)
end

--- The same as a txn of its own, for what is no change of the state. In a task. true; nil, err.
function M.record(fields)
  local ok, err = state.update(function()
    local txn = { compare = {}, ops = {} }
    M.add(txn, fields)
    return txn, true
  end)
  if not ok then return nil, err end
  return true
end

-- Reading -------------------------------------------------------------------------------------------------------------

local function shown(row)
  local event, err = json.decode(row.value)
  if type(event) ~= "table" then
    return nil, errors.new("corrupt", ("%s is damaged: %s"):format(row.key, err and err.message or "no object"))
  end
  event.id, event.revision = number_of(row.key), row.mod_revision or row.revision
  return event
end

-- Does @event tell what is asked for? @want: since (unix seconds), kind (also the word before the dot), node (an id,
-- the beginning of one, or a name), node_id (what that means now). Pure.
function M.matches(event, want)
  if want.since and (event.at or 0) < want.since then return false end
  if want.kind and event.kind ~= want.kind and (event.kind or ""):match("^[^.]*") ~= want.kind then return false end
  if not want.node then return true end
  local id = event.node_id or ""
  return event.name == want.node or (want.node_id ~= nil and id == want.node_id)
    or (#want.node >= 6 and id:sub(1, #want.node) == want.node)
end

-- What node @name means now, for matches: its id; nil if there is none now, or several.
function M.node_id(name)
  local n = name and state.node(name)
  return n and n.node_id
end

-- Those in local state, oldest first. @want: as in matches, and from: the first revision; limit: the last so many.
-- nil, err.
function M.list(want)
  local rows, err = state.list_raw(PREFIX)
  if not rows then return nil, err end
  table.sort(rows, function(a, b)
    if a.mod_revision ~= b.mod_revision then return a.mod_revision < b.mod_revision end
    return a.key < b.key
  end)
  local out, limit = {}, want.limit or math.huge
  for i = #rows, 1, -1 do
    if #out >= limit or rows[i].mod_revision < (want.from or 0) then break end
    local event
    event, err = shown(rows[i])
    if not event then return nil, err end
    if M.matches(event, want) then out[#out + 1] = event end
  end
  for i = 1, #out // 2 do out[i], out[#out + 1 - i] = out[#out + 1 - i], out[i] end
  return json.array(out)
end

local Follower = {}
Follower.__index = Follower

local function item(change)
  if change.deleted then return nil end
  return { key = change.key, value = change.value, revision = change.revision }, #change.key + #change.value
end

-- Watches from here on; what there is up to here and was not told yet is listed.
local function open(self)
  local why
  local revision = store.revision()
  self.feed, why = follow.open(PREFIX, revision, BACKLOG_MAX, item)
  if not self.feed then return nil, state.explain(why) end
  local rows, err = M.list(self.want)
  if not rows then return nil, err end
  self.rows, self.at = rows, 1
  self.want.limit, self.want.from = nil, revision + 1
  return true
end

-- The next one of those that were listed or have come, whatever it tells.
local function take(self)
  local event = self.rows[self.at]
  if event then
    self.rows[self.at] = nil
    self.at = self.at + 1
    return event
  end
  local change = self.feed:pop()
  if change then return shown(change) end
end

--- Follows the events in local state: @want as for list (without from: those there are, at most its limit, come first;
--- limit = 0: only new ones). Close it when done (a `<close>` variable does). Never fails.
function M.follow(want)
  local self = setmetatable({ want = {}, told = 0, id = 0 }, Follower)
  for name, value in pairs(want) do self.want[name] = value end
  return self
end

--- The next event; nil when none came within @ms (nil: waits for ever); nil, err when it is over. What a reader missed
--- that was too slow, or a state that was replaced by a snapshot, is told from what the state has. In a task.
function Follower:next(ms)
  while true do
    local ok, err = true, nil
    if not self.feed then ok, err = open(self) end
    if not ok then return nil, err end
    local event
    event, err = take(self)
    if err then return nil, err end
    local failed = self.feed.failed
    if event then
      local new = event.revision > self.told or (event.revision == self.told and event.id > self.id)
      if new then
        self.told, self.id = event.revision, event.id
        if M.matches(event, self.want) then return event end
      end
    elseif failed and failed.code ~= "compacted" and failed.code ~= "busy" then
      return nil, state.explain(failed)
    elseif failed then
      self:close()
    elseif not self.feed.changed:wait(ms) then
      return nil
    end
  end
end

function Follower:close()
  if self.feed then self.feed:close() end
  self.feed = nil
end

Follower.__close = Follower.close

return M
