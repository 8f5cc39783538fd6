-- /node/ and /status/node/ in short, decoded, and kept up to date by watches: thousands of records are not read anew
-- for every look.
local log = require "sym.log"
local state = require "symphony.cluster.state"
local store = require "sym.store"

local M = {}
M.__index = M

M.NODE, M.STATUS = "/node/", "/status/node/"

--- @on_change(id): called when something about a node has changed.
---   nodes    id -> {node_id, name, role, raft_node_id, remote_address, create_revision}
---   status   id -> its status record
---   ready    how many of the nodes are recorded as ready
function M.new(on_change)
  return setmetatable({ nodes = {}, status = {}, ready = 0, on_change = on_change }, M)
end

local function is_ready(c, id)
  local record = c.status[id]
  return c.nodes[id] and record and record.status == "ready" and 1 or 0
end

--- Reads @key anew.
function M:refresh(key)
  local value, kv = state.get(key)
  if not value and kv then log.error("status: " .. kv.message) end
  local id = key:match("[^/]*$")
  local before = is_ready(self, id)
  if key == M.STATUS .. id then
    self.status[id] = type(value) == "table" and value or nil
  elseif key == M.NODE .. id then
    self.nodes[id] = type(value) == "table" and { node_id = id, name = value.name, role = value.role,
      raft_node_id = value.raft_node_id, remote_address = value.remote_address,
      create_revision = kv.create_revision } or nil
  end
  self.ready = self.ready + is_ready(self, id) - before
  self.on_change(id)
end

local function watch(self, prefix)
  local handle, err = store.watch(prefix, store.revision(), function(failed, list)
    if failed then
      self:close()
    else
      for _, event in ipairs(list) do self:refresh(event.key) end
    end
  end)
  if not handle then
    log.error("cannot watch " .. prefix .. ": " .. err.message)
    return false
  end
  self.watches[#self.watches + 1] = handle
  return true
end

--- Reads everything unless it is there; in a task. False if that failed or was broken off.
function M:load()
  if self.watches then return true end
  self.watches, self.nodes, self.status, self.ready = {}, {}, {}, 0
  local mine = self.watches
  for _, prefix in ipairs { M.NODE, M.STATUS } do
    if not watch(self, prefix) then
      self:close()
      return false
    end
    local ok = state.each_raw(prefix, function(kv)
      if self.watches == mine then self:refresh(kv.key) end
    end)
    if self.watches ~= mine then return false end
    if not ok then
      self:close()
      return false
    end
  end
  return true
end

--- The watches end; what was read is read anew by load().
function M:close()
  for _, handle in ipairs(self.watches or {}) do handle:close() end
  self.watches = nil
end

--- How people call node @id.
function M:name(id)
  return self.nodes[id] and self.nodes[id].name or id
end

--- Ids with a status and no node, at most @max.
function M:orphans(max)
  local out = {}
  for id in pairs(self.status) do
    if #out >= max then break end
    if not self.nodes[id] then out[#out + 1] = id end
  end
  return out
end

return M
